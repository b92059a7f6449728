# The tests of apps/
