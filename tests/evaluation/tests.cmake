# The tests of evaluation/
mirabelle_test(metrics_test SOURCES evaluation/metrics_test.cpp LIBS mirabelle_evaluation)
mirabelle_test(baselines_test SOURCES evaluation/baselines_test.cpp LIBS mirabelle_evaluation)
mirabelle_test(beam_search_test SOURCES evaluation/beam_search_test.cpp LIBS mirabelle_evaluation)
mirabelle_test(evaluator_test SOURCES evaluation/evaluator_test.cpp LIBS mirabelle_evaluation
               RANKS 1 2 4)
mirabelle_test(html_report_test SOURCES evaluation/html_report_test.cpp LIBS mirabelle_evaluation)
