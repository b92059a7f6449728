# The tests of apps/
mirabelle_test(tokenizer_build_test SOURCES apps/tokenizer_build_test.cpp LIBS mirabelle_tokenizer
               APPS mirabelle-tokenizer-build)
