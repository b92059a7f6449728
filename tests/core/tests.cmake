# The tests of core/
mirabelle_test(table_test SOURCES core/table_test.cpp LIBS mirabelle_core)
mirabelle_test(progress_test SOURCES core/progress_test.cpp LIBS mirabelle_core)
mirabelle_test(random_test SOURCES core/random_test.cpp LIBS mirabelle_core)
mirabelle_test(files_test SOURCES core/files_test.cpp LIBS mirabelle_core)
mirabelle_test(hdf5_file_test SOURCES core/hdf5_file_test.cpp LIBS mirabelle_core)
mirabelle_test(tensor_test SOURCES core/tensor_test.cpp LIBS mirabelle_core)
mirabelle_test(memory_plan_test SOURCES core/memory_plan_test.cpp LIBS mirabelle_core)
