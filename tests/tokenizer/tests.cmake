# The tests of tokenizer/
mirabelle_test(semantic_id_test SOURCES tokenizer/semantic_id_test.cpp LIBS mirabelle_tokenizer)
