# The tests of convert/
mirabelle_test(safetensors_test SOURCES convert/safetensors_test.cpp LIBS mirabelle_convert)
