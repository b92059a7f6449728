#include "mirabelle/kernels/swiglu.h"

#include "cpu/parallel_threshold.h"
#include "cpu/vector_math.h"

namespace mirabelle::backend {

template <Device D, typename T>
void swiglu_forward(T* out, const T* gate_up, int64_t num_tokens, int64_t num_blocks,
                    int64_t block_size, const Stream&) {
  const int64_t num_rows = num_tokens * num_blocks;
#pragma omp parallel for schedule(static) if (num_rows * block_size > kParallelThreshold)
  for (int64_t row = 0; row < num_rows; ++row) {
    const T* gate = gate_up + row * 2 * block_size;
    const T* up = gate + block_size;
    T* y = out + row * block_size;
#pragma omp simd
    for (int64_t i = 0; i < block_size; ++i) {
      y[i] = static_cast<T>(gate[i] / (1 + fast_exp(-gate[i])) * up[i]);
    }
  }
}

// With s = 1 / (1 + exp(-x)):  silu(x) = x s,  silu'(x) = s + x s (1 - s).
template <Device D, typename T>
void swiglu_backward(T* grad_gate_up, const T* grad_out, const T* gate_up, int64_t num_tokens,
                     int64_t num_blocks, int64_t block_size, const Stream&) {
  const int64_t num_rows = num_tokens * num_blocks;
#pragma omp parallel for schedule(static) if (num_rows * block_size > kParallelThreshold)
  for (int64_t row = 0; row < num_rows; ++row) {
    const T* gate = gate_up + row * 2 * block_size;
    const T* up = gate + block_size;
    const T* dy = grad_out + row * block_size;
    T* grad_gate = grad_gate_up + row * 2 * block_size;
    T* grad_up = grad_gate + block_size;
#pragma omp simd
    for (int64_t i = 0; i < block_size; ++i) {
      const Wide<T> s = 1 / (1 + fast_exp(-gate[i]));
      const Wide<T> silu = gate[i] * s;
      const Wide<T> slope = s + silu * (1 - s);
      grad_gate[i] = static_cast<T>(dy[i] * up[i] * slope);  // the last read of gate[i] and up[i],
      grad_up[i] = static_cast<T>(dy[i] * silu);             // so the gradient may replace them
    }
  }
}

#define INSTANTIATE(T)                                                                     \
  template void swiglu_forward<Device::kCpu, T>(T*, const T*, int64_t, int64_t, int64_t,   \
                                                const Stream&);                            \
  template void swiglu_backward<Device::kCpu, T>(T*, const T*, const T*, int64_t, int64_t, \
                                                 int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
