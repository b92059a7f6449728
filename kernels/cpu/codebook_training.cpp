#include "mirabelle/kernels/codebook_training.h"

#include "cpu/check_indices.h"
#include "cpu/parallel_threshold.h"
#include "rotation.h"

namespace mirabelle::backend {

template <Device D, typename T>
void sum_kept_codes(T* out, const T* residuals, const int32_t* num_kept, int64_t num_levels,
                    int64_t n, int64_t codebook_dim, const Stream&) {
  check_index_range("num_kept", num_kept, n, 0, num_levels + 1);
#pragma omp parallel for schedule(static) if (n * codebook_dim > kParallelThreshold)
  for (int64_t i = 0; i < n; ++i) {
    const T* z = residuals + i * codebook_dim;
    const T* left = z + num_kept[i] * n * codebook_dim;
    T* sum = out + i * codebook_dim;
#pragma omp simd
    for (int64_t c = 0; c < codebook_dim; ++c) sum[c] = z[c] - left[c];
  }
}

template <Device D, typename T>
void rotation_backward(T* grad_z, const T* grad_quantized, const T* z, const T* quantized,
                       int64_t n, int64_t codebook_dim, const Stream&) {
#pragma omp parallel for schedule(static) if (n * codebook_dim > kParallelThreshold)
  for (int64_t i = 0; i < n; ++i) {
    const T* z_row = z + i * codebook_dim;
    const T* q_row = quantized + i * codebook_dim;
    const T* g_row = grad_quantized + i * codebook_dim;
    T zz = 0, qq = 0, zq = 0, zg = 0, qg = 0;
#pragma omp simd reduction(+ : zz, qq, zq, zg, qg)
    for (int64_t c = 0; c < codebook_dim; ++c) {
      zz += z_row[c] * z_row[c];
      qq += q_row[c] * q_row[c];
      zq += z_row[c] * q_row[c];
      zg += z_row[c] * g_row[c];
      qg += q_row[c] * g_row[c];
    }
    const RotatedGradient<T> rotated(zz, qq, zq, zg, qg);
    T* to = grad_z + i * codebook_dim;
#pragma omp simd
    for (int64_t c = 0; c < codebook_dim; ++c) {
      to[c] = rotated.of_g * g_row[c] + rotated.of_z * z_row[c] + rotated.of_q * q_row[c];
    }
  }
}

template <>
void count_codes<Device::kCpu>(int64_t* counts, const int32_t* codes, int64_t n,
                               int64_t codebook_size, const Stream&) {
  check_index_range("codes", codes, n, 0, codebook_size);
  for (int64_t i = 0; i < n; ++i) ++counts[codes[i]];
}

template <Device D, typename T>
void ema_codebook_update(T* codebook, T* ema_counts, const T* grad, const int64_t* counts,
                         int64_t codebook_size, int64_t codebook_dim, double decay, const Stream&) {
  const T kept = static_cast<T>(decay), moved = static_cast<T>(1 - decay);
#pragma omp parallel for schedule(static) if (codebook_size * codebook_dim > kParallelThreshold)
  for (int64_t code = 0; code < codebook_size; ++code) {
    ema_counts[code] = kept * ema_counts[code] + moved * static_cast<T>(counts[code]);
    if (counts[code] == 0) continue;
    const T step = moved / ema_counts[code];
    T* row = codebook + code * codebook_dim;
    const T* of_row = grad + code * codebook_dim;
#pragma omp simd
    for (int64_t c = 0; c < codebook_dim; ++c) row[c] -= step * of_row[c];
  }
}

#define INSTANTIATE(T)                                                                          \
  template void sum_kept_codes<Device::kCpu, T>(T*, const T*, const int32_t*, int64_t, int64_t, \
                                                int64_t, const Stream&);                        \
  template void rotation_backward<Device::kCpu, T>(T*, const T*, const T*, const T*, int64_t,   \
                                                   int64_t, const Stream&);                     \
  template void ema_codebook_update<Device::kCpu, T>(T*, T*, const T*, const int64_t*, int64_t, \
                                                     int64_t, double, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
