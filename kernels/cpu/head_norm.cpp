#include "mirabelle/kernels/head_norm.h"

#include <cmath>

#include "cpu/token_chunks.h"

namespace mirabelle::backend {
namespace {

template <typename T>
Wide<T> inverse_deviation(const T* x, int64_t head_dim, double epsilon) {
  Wide<T> squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < head_dim; ++i) squares += Wide<T>(x[i]) * x[i];
  return 1 / std::sqrt(squares / head_dim + static_cast<Wide<T>>(epsilon));
}

/// The weights of head number `head` of a group: 0 queries', 1 keys'; -1 for the value.
int64_t kind_of(int64_t head, int64_t group_size) {
  return head < group_size ? 0 : head == group_size ? 1 : -1;
}

}  // namespace

template <Device D, typename T>
void head_norm_forward(T* out, const T* x, const T* weights, int64_t num_tokens,
                       int64_t num_kv_heads, int64_t group_size, int64_t head_dim, double epsilon,
                       const Stream&) {
  const int64_t num_heads = num_kv_heads * (group_size + 2);
#pragma omp parallel for schedule(static) if (num_tokens * num_heads * head_dim > \
                                              kParallelThreshold)
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t head = 0; head < num_heads; ++head) {
      const int64_t kind = kind_of(head % (group_size + 2), group_size);
      const T* from = x + (token * num_heads + head) * head_dim;
      T* to = out + (token * num_heads + head) * head_dim;
      if (kind < 0) {
        if (to != from) std::copy_n(from, head_dim, to);
        continue;
      }
      const T* w = weights + kind * head_dim;
      const Wide<T> r = inverse_deviation(from, head_dim, epsilon);
#pragma omp simd
      for (int64_t i = 0; i < head_dim; ++i) to[i] = static_cast<T>(from[i] * r * w[i]);
    }
  }
}

// With y = x r w and r = (mean(x^2) + epsilon)^(-1/2):
//   dx = r w dy - x r^3 / head_dim * sum(dy w x)
template <Device D, typename T>
void head_norm_backward(T* grad_x, Wide<T>* grad_weights, const T* grad_out, const T* x,
                        const T* weights, int64_t num_tokens, int64_t num_kv_heads,
                        int64_t group_size, int64_t head_dim, double epsilon, int64_t num_chunks,
                        Wide<T>* workspace, const Stream&) {
  const int64_t num_heads = num_kv_heads * (group_size + 2);
  const auto add_head = [&](int64_t at, int64_t kind, Wide<T>* weight_sum) {
    const T *from = x + at, *dy = grad_out + at, *w = weights + kind * head_dim;
    T* dx = grad_x + at;
    const Wide<T> r = inverse_deviation(from, head_dim, epsilon);
    Wide<T> product = 0;
#pragma omp simd reduction(+ : product)
    for (int64_t i = 0; i < head_dim; ++i) product += dy[i] * w[i] * from[i];
    const Wide<T> shrink = product * r * r * r / head_dim;
#pragma omp simd
    for (int64_t i = 0; i < head_dim; ++i) {
      weight_sum[i] += dy[i] * from[i] * r;
      dx[i] = static_cast<T>(dy[i] * w[i] * r - from[i] * shrink);
    }
  };
  sum_over_tokens(
      grad_weights, workspace, num_tokens, num_chunks, 2 * head_dim,
      num_tokens * num_heads * head_dim, [&](int64_t begin, int64_t end, Wide<T>* sums) {
        for (int64_t i = begin * num_heads; i < end * num_heads; ++i) {
          const int64_t kind = kind_of(i % (group_size + 2), group_size), at = i * head_dim;
          if (kind >= 0) {
            add_head(at, kind, sums + kind * head_dim);
          } else if (grad_x != grad_out) {
            std::copy_n(grad_out + at, head_dim, grad_x + at);
          }
        }
      });
}

#define INSTANTIATE(T)                                                                          \
  template void head_norm_forward<Device::kCpu, T>(T*, const T*, const T*, int64_t, int64_t,    \
                                                   int64_t, int64_t, double, const Stream&);    \
  template void head_norm_backward<Device::kCpu, T>(T*, Wide<T>*, const T*, const T*, const T*, \
                                                    int64_t, int64_t, int64_t, int64_t, double, \
                                                    int64_t, Wide<T>*, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
