# The tests of core/
mirabelle_test(table_test SOURCES core/table_test.cpp LIBS mirabelle_core)
mirabelle_test(progress_test SOURCES core/progress_test.cpp LIBS mirabelle_core)
