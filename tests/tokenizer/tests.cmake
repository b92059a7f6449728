# The tests of tokenizer/
