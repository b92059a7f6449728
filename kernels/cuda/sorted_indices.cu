#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/libraries.h"
#include "cuda/sorted_indices.h"
#include "cuda/vector_load.cuh"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

__global__ void count_up_kernel(int32_t* numbers, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) numbers[i] = static_cast<int32_t>(i);
}

}  // namespace

SortedIndices sort_indices(const int32_t* indices, int64_t n, int64_t end, const Stream& stream) {
  const int num_bits = std::bit_width(static_cast<uint64_t>(end));
  size_t sort_bytes = 0;
  const auto sort = [&](void* memory, int32_t* values, int32_t* places, int32_t* order) {
    CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory, sort_bytes, indices, values, places, order,
                                               static_cast<int>(n), 0, num_bits, stream.cuda()));
  };
  sort(nullptr, nullptr, nullptr, nullptr);  // only says how much memory it needs
  const int64_t array_bytes = ceil_div(n * static_cast<int64_t>(sizeof(int32_t)), 256) * 256;
  char* memory = static_cast<char*>(
      libraries_of(stream).workspace(3 * array_bytes + static_cast<int64_t>(sort_bytes)));
  const auto array = [&](int i) { return reinterpret_cast<int32_t*>(memory + i * array_bytes); };
  count_up_kernel<<<ceil_div(n, kThreads), kThreads, 0, stream.cuda()>>>(array(2), n);
  CUDA_CHECK(cudaGetLastError());
  sort(memory + 3 * array_bytes, array(0), array(2), array(1));
  return {array(0), array(1)};
}

}  // namespace mirabelle::backend
