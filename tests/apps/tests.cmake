# The tests of apps/
mirabelle_test(tokenizer_build_test SOURCES apps/tokenizer_build_test.cpp LIBS mirabelle_tokenizer
               APPS mirabelle-tokenizer-build)
mirabelle_test(data_test SOURCES apps/data_test.cpp LIBS mirabelle_data APPS mirabelle-data)
mirabelle_test(evaluate_test SOURCES apps/evaluate_test.cpp LIBS mirabelle_config
               APPS mirabelle-evaluate)
mirabelle_test(recommend_test SOURCES apps/recommend_test.cpp LIBS mirabelle_config
               APPS mirabelle-recommend)
mirabelle_test(train_test SOURCES apps/train_test.cpp LIBS mirabelle_core
               APPS mirabelle-data mirabelle-tokenizer-build mirabelle-train mirabelle-evaluate)
mirabelle_test(bench_test SOURCES apps/bench_test.cpp LIBS mirabelle_core APPS mirabelle-bench)
