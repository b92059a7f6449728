# The tests of training/
