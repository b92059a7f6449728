#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {

/// The sum over tokens of a parameter's gradient, in an order that does not depend on the number of
/// threads: chunks of tokens by themselves, into the rows of workspace [num_chunks,
/// num_parameters], which are then added one after the other to grad.
///   add_tokens(begin, end, sums): sums [num_parameters] += that of the tokens [begin, end)
/// `work`: elements that all of it goes over.
template <typename W, typename AddTokens>
void sum_over_tokens(W* grad, W* workspace, int64_t num_tokens, int64_t num_chunks,
                     int64_t num_parameters, int64_t work, const AddTokens& add_tokens) {
#pragma omp parallel for schedule(static) if (work > kParallelThreshold)
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    W* sums = workspace + chunk * num_parameters;
    std::fill(sums, sums + num_parameters, W{0});
    add_tokens(chunk * num_tokens / num_chunks, (chunk + 1) * num_tokens / num_chunks, sums);
  }
#pragma omp parallel for simd schedule(static) if (num_chunks * num_parameters > kParallelThreshold)
  for (int64_t i = 0; i < num_parameters; ++i) {
    W total = 0;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      total += workspace[chunk * num_parameters + i];
    }
    grad[i] += total;
  }
}

}  // namespace mirabelle::backend
