#include "mirabelle/core/cuda_check.h"
#include "tree_sum.h"

namespace mirabelle {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxLevels = 32;  // of the tree over an int's worth of ranks

/// Adds the operands one after the other: subtrees of 2^k neighbours that are complete wait on a
/// stack, each larger than the next, and what is left at the end is added from the right.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    tree_sum_kernel(T* out, const T* own, const T* received, int64_t stride, int rank, int size,
                    int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  Wide<T> subtrees[kMaxLevels];
  int waiting = 0;
  for (int r = 0; r < size; ++r) {
    Wide<T> sum = r == rank ? own[i] : received[r * stride + i];
    for (int complete = r; complete & 1; complete >>= 1) sum = subtrees[--waiting] + sum;
    subtrees[waiting++] = sum;
  }
  Wide<T> sum = subtrees[--waiting];
  while (waiting > 0) sum = subtrees[--waiting] + sum;
  out[i] = T(sum);
}

template <typename T>
void launch(void* out, const void* own, const void* received, int64_t stride, int rank, int size,
            int64_t n, const Stream& stream) {
  const auto blocks = static_cast<unsigned>((n + kThreads - 1) / kThreads);
  tree_sum_kernel<<<blocks, kThreads, 0, stream.cuda()>>>(
      static_cast<T*>(out), static_cast<const T*>(own), static_cast<const T*>(received), stride,
      rank, size, n);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void tree_sum(void* out, const void* own, const void* received, int64_t stride, int rank, int size,
              int64_t n, DType dtype, const Stream& stream) {
  if (n == 0) return;
  switch (dtype) {
    case DType::kFloat32:
      return launch<float>(out, own, received, stride, rank, size, n, stream);
    case DType::kFloat64:
      return launch<double>(out, own, received, stride, rank, size, n, stream);
    case DType::kBFloat16:
      return launch<BFloat16>(out, own, received, stride, rank, size, n, stream);
    default:
      throw_error(ErrorKind::kOther, "tree_sum does not add ", to_string(dtype));
  }
}

}  // namespace mirabelle
