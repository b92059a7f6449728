# The tests of kernels/
