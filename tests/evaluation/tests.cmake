# The tests of evaluation/
