// main() of the test programs that run under mpirun. The ranks must reach each verdict together:
// compare locally, all_reduce the number of mismatches, then EXPECT on that.
#include <gtest/gtest.h>

#include "mirabelle/comm/communicator.h"

int main(int argc, char** argv) {
  mirabelle::MpiSession mpi(&argc, &argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
