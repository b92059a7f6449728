# The tests of model/
mirabelle_test(transformer_test SOURCES model/transformer_test.cpp LIBS mirabelle_model)
