# The tests of data/
