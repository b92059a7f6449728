#include "mirabelle/kernels/embedding.h"

#include <omp.h>

#include <algorithm>
#include <limits>

#include "cpu/check_indices.h"
#include "cpu/dropout_mask.h"
#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {
namespace {

void check_not_negative(const int32_t* tokens, int64_t n) {
  check_index_range("tokens", tokens, n, 0, int64_t{std::numeric_limits<int32_t>::max()} + 1);
}

bool is_row(int64_t row, int64_t num_rows) { return 0 <= row && row < num_rows; }

}  // namespace

template <Device D, typename T>
void embedding_forward(T* out, const int32_t* tokens, const T* table, int64_t num_tokens,
                       int64_t num_rows, int64_t hidden_size, int64_t first_token,
                       const DropoutArguments& dropout, const Stream&) {
  check_not_negative(tokens, num_tokens);
#pragma omp parallel for schedule(static) if (num_tokens * hidden_size > kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    T* y = out + token * hidden_size;
    const int64_t row = tokens[token] - first_token;
    if (!is_row(row, num_rows)) {
      std::fill_n(y, hidden_size, T{});
      continue;
    }
    const T* x = table + row * hidden_size;
    for_each_kept<Wide<T>>(dropout, token, hidden_size, [&](int64_t i, Wide<T> keep) {
      y[i] = static_cast<T>(keep * x[i] + 0);  // + 0 makes +0 of -0
    });
  }
}

// Each row of the table belongs to one thread, which adds to it in the order of the tokens: no
// atomics, and the same sums for any number of threads.
template <Device D, typename T>
void embedding_backward(Wide<T>* grad_table, const T* grad_out, const int32_t* tokens,
                        int64_t num_tokens, int64_t num_rows, int64_t hidden_size,
                        int64_t first_token, const DropoutArguments& dropout, const Stream&) {
  check_not_negative(tokens, num_tokens);
#pragma omp parallel if (num_tokens * hidden_size > kParallelThreshold)
  {
    const int num_threads = omp_get_num_threads(), thread = omp_get_thread_num();
    for (int64_t token = 0; token < num_tokens; ++token) {
      const int64_t row = tokens[token] - first_token;
      if (!is_row(row, num_rows) || row % num_threads != thread) continue;
      const T* dy = grad_out + token * hidden_size;
      Wide<T>* sum = grad_table + row * hidden_size;
      for_each_kept<Wide<T>>(dropout, token, hidden_size,
                             [&](int64_t i, Wide<T> keep) { sum[i] += keep * dy[i]; });
    }
  }
}

template <Device D, typename T>
void gather_rows(T* out, const T* x, const int32_t* indices, int64_t num_out_rows, int64_t num_rows,
                 int64_t row_size, const Stream&) {
  check_index_range("indices", indices, num_out_rows, 0, num_rows);
#pragma omp parallel for schedule(static) if (num_out_rows * row_size > kParallelThreshold)
  for (int64_t i = 0; i < num_out_rows; ++i) {
    std::copy_n(x + indices[i] * row_size, row_size, out + i * row_size);
  }
}

#define INSTANTIATE(T)                                                                             \
  template void embedding_forward<Device::kCpu, T>(T*, const int32_t*, const T*, int64_t, int64_t, \
                                                   int64_t, int64_t, const DropoutArguments&,      \
                                                   const Stream&);                                 \
  template void embedding_backward<Device::kCpu, T>(Wide<T>*, const T*, const int32_t*, int64_t,   \
                                                    int64_t, int64_t, int64_t,                     \
                                                    const DropoutArguments&, const Stream&);       \
  template void gather_rows<Device::kCpu, T>(T*, const T*, const int32_t*, int64_t, int64_t,       \
                                             int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
