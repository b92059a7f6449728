# The tests of config/
