# The tests of core/
