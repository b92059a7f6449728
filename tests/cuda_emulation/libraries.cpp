// NVIDIA's libraries on the emulated GPU: plain matrix products in the place of cuBLASLt, and no
// cuDNN.
#include "cuda/libraries.h"

#include <vector>

#include "cuda/attention_cudnn.h"
#include "mirabelle/kernels/matmul.h"

namespace mirabelle::backend {

void destroy_cublaslt(cublasLtHandle_t) {}
void destroy_cudnn(cudnnHandle_t) {}
void CudnnDescriptor::destroy(cudnnBackendDescriptor_t) {}

CudaLibraries::CudaLibraries() {}

bool attention_cudnn_forward(BFloat16*, float*, const BFloat16*, const int32_t*, int64_t,
                             const AttentionShape&, float, const Stream&) {
  return false;
}
bool attention_cudnn_backward(BFloat16*, const BFloat16*, const BFloat16*, const float*,
                              const BFloat16*, const int32_t*, int64_t, const AttentionShape&,
                              float, const Stream&) {
  return false;
}

template <Device D, typename T, typename Out>
void matmul(Out* out, const T* a, bool transpose_a, const T* b, bool transpose_b, bool accumulate,
            int64_t count, int64_t m, int64_t n, int64_t k, const Stream& stream) {
  for (int64_t i = 1; i < count; ++i) {
    matmul<D>(out + i * m * n, a + i * m * k, transpose_a, b + i * k * n, transpose_b, accumulate,
              1, m, n, k, stream);
  }
  if (count == 0) return;
  emulation::enqueue([=] {
    std::vector<float> b_rows(k * n), sums(n);
    for (int64_t l = 0; l < k; ++l) {
      for (int64_t j = 0; j < n; ++j) {
        b_rows[l * n + j] = static_cast<float>(transpose_b ? b[j * k + l] : b[l * n + j]);
      }
    }
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        sums[j] = accumulate ? static_cast<float>(out[i * n + j]) : 0;
      }
      for (int64_t l = 0; l < k; ++l) {
        const auto x = static_cast<float>(transpose_a ? a[l * m + i] : a[i * k + l]);
        for (int64_t j = 0; j < n; ++j) sums[j] += x * b_rows[l * n + j];
      }
      for (int64_t j = 0; j < n; ++j) out[i * n + j] = static_cast<Out>(sums[j]);
    }
  });
}

#define INSTANTIATE(T, Out)                                                                        \
  template void matmul<Device::kCuda, T, Out>(Out*, const T*, bool, const T*, bool, bool, int64_t, \
                                              int64_t, int64_t, int64_t, const Stream&);
INSTANTIATE(float, float)
INSTANTIATE(BFloat16, BFloat16)
INSTANTIATE(BFloat16, float)
#undef INSTANTIATE

}  // namespace mirabelle::backend
