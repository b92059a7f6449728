#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <vector>

namespace mirabelle::testing {

/// `run` returns the elements of a result; they must be the same to the last bit for 1, 2, 3 and 8
/// threads (at 8, oneDNN left to itself splits sums).
template <typename Run>
void expect_same_for_any_number_of_threads(Run run) {
  const int threads_before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<double> expected = run();
  for (int threads : {2, 3, 8}) {
    omp_set_num_threads(threads);
    const std::vector<double> actual = run();
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      if (actual[i] == expected[i]) continue;
      ADD_FAILURE() << threads << " threads give " << actual[i] << " for element " << i
                    << ", 1 thread gives " << expected[i];
      break;
    }
  }
  omp_set_num_threads(threads_before);
}

}  // namespace mirabelle::testing
