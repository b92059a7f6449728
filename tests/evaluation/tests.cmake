# The tests of evaluation/
mirabelle_test(metrics_test SOURCES evaluation/metrics_test.cpp LIBS mirabelle_evaluation)
mirabelle_test(baselines_test SOURCES evaluation/baselines_test.cpp LIBS mirabelle_evaluation)
mirabelle_test(beam_search_test SOURCES evaluation/beam_search_test.cpp LIBS mirabelle_evaluation)
