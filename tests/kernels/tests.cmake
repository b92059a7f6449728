# The tests of kernels/
mirabelle_test(attention_test SOURCES kernels/attention_test.cpp LIBS mirabelle_kernels)
mirabelle_test(nearest_code_test SOURCES kernels/nearest_code_test.cpp LIBS mirabelle_kernels)
mirabelle_test(top_k_test SOURCES kernels/top_k_test.cpp LIBS mirabelle_kernels)
