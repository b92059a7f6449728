# The tests of comm/
