# The tests of model/
