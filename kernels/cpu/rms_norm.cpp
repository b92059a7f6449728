#include "mirabelle/kernels/rms_norm.h"

#include <cmath>

#include "cpu/dropout_mask.h"
#include "cpu/token_chunks.h"
#include "dropout_arguments.h"

namespace mirabelle::backend {
template <Device D, typename T>
void residual_rms_norm_forward(T* out, T* residual_out, Wide<T>* rstd, const T* residual,
                               const T* branch, const T* weight, int64_t num_tokens,
                               int64_t hidden_size, double epsilon, const DropoutArguments& dropout,
                               const Stream&) {
#pragma omp parallel for schedule(static) if (num_tokens * hidden_size > kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    const T* x = residual + token * hidden_size;
    if (branch) {
      T* sum = residual_out + token * hidden_size;
      const T* b = branch + token * hidden_size;
      for_each_kept<Wide<T>>(dropout, token, hidden_size, [&](int64_t i, Wide<T> keep) {
        sum[i] = static_cast<T>(x[i] + keep * b[i]);
      });
      x = sum;
    }
    Wide<T> squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < hidden_size; ++i) squares += x[i] * x[i];
    const Wide<T> r = 1 / std::sqrt(squares / hidden_size + static_cast<Wide<T>>(epsilon));
    T* y = out + token * hidden_size;
#pragma omp simd
    for (int64_t i = 0; i < hidden_size; ++i) y[i] = static_cast<T>(x[i] * r * weight[i]);
    rstd[token] = r;
  }
}

// With y = x r w and r = (mean(x^2) + epsilon)^(-1/2):
//   dx = r w dy - x r^3 / hidden_size * sum(dy w x)
template <Device D, typename T>
void residual_rms_norm_backward(T* grad_residual, T* grad_branch, Wide<T>* grad_weight,
                                const T* grad_out, const T* residual_out, const Wide<T>* rstd,
                                const T* weight, int64_t num_tokens, int64_t hidden_size,
                                int64_t num_chunks, const DropoutArguments& dropout,
                                Wide<T>* workspace, const Stream&) {
  const auto add_tokens = [&](int64_t begin, int64_t end, Wide<T>* weight_sum) {
    for (int64_t token = begin; token < end; ++token) {
      const T* x = residual_out + token * hidden_size;
      const T* dy = grad_out + token * hidden_size;
      T* dx = grad_residual + token * hidden_size;
      const Wide<T> r = rstd[token];
      Wide<T> dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < hidden_size; ++i) dot += dy[i] * weight[i] * x[i];
      const Wide<T> shrink = dot * r * r * r / hidden_size;
#pragma omp simd
      for (int64_t i = 0; i < hidden_size; ++i) {
        dx[i] = static_cast<T>(dx[i] + (dy[i] * weight[i] * r - x[i] * shrink));
        weight_sum[i] += dy[i] * x[i] * r;
      }
      if (grad_branch) {
        T* db = grad_branch + token * hidden_size;
        for_each_kept<Wide<T>>(dropout, token, hidden_size, [&](int64_t i, Wide<T> keep) {
          db[i] = static_cast<T>(keep * dx[i]);
        });
      }
    }
  };
  sum_over_tokens(grad_weight, workspace, num_tokens, num_chunks, hidden_size,
                  num_tokens * hidden_size, add_tokens);
}

#define INSTANTIATE(T)                                                                           \
  template void residual_rms_norm_forward<Device::kCpu, T>(                                      \
      T*, T*, Wide<T>*, const T*, const T*, const T*, int64_t, int64_t, double,                  \
      const DropoutArguments&, const Stream&);                                                   \
  template void residual_rms_norm_backward<Device::kCpu, T>(                                     \
      T*, T*, Wide<T>*, const T*, const T*, const Wide<T>*, const T*, int64_t, int64_t, int64_t, \
      const DropoutArguments&, Wide<T>*, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
