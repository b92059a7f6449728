#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/convert.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads) round_kernel(T* out, const float* x, int64_t n) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (first >= n) return;
  store_vector<kAligned>(out, first, n, load_vector<kAligned>(x, first, n));
}

}  // namespace

template <Device D, typename T>
void round_to(T* out, const Wide<T>* x, int64_t n, const Stream& stream) {
  if (n == 0) return;
  dispatch_flag(rows_are_aligned(n, {out, x}), [&]<bool kAligned>() {
    round_kernel<kAligned>
        <<<ceil_div(ceil_div(n, kVector), kThreads), kThreads, 0, stream.cuda()>>>(out, x, n);
    CUDA_CHECK(cudaGetLastError());
  });
}

#define INSTANTIATE(T) \
  template void round_to<Device::kCuda, T>(T*, const float*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
