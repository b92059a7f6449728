#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/libraries.h"
#include "cuda/sorted_indices.h"
#include "cuda/vector_load.cuh"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

__global__ void number_kernel(int32_t* keys, int32_t* places, const int32_t* indices, int64_t n,
                              int64_t first, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const int64_t index = indices[i] - first;
  keys[i] = static_cast<int32_t>(0 <= index && index < count ? index : count);
  places[i] = static_cast<int32_t>(i);
}

}  // namespace

SortedIndices sort_indices(const int32_t* indices, int64_t n, int64_t first, int64_t count,
                           const Stream& stream) {
  const int num_bits = std::bit_width(static_cast<uint64_t>(count));
  size_t sort_bytes = 0;
  const auto sort = [&](void* memory, int32_t* keys, int32_t* values, int32_t* places,
                        int32_t* order) {
    CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory, sort_bytes, keys, values, places, order,
                                               static_cast<int>(n), 0, num_bits, stream.cuda()));
  };
  sort(nullptr, nullptr, nullptr, nullptr, nullptr);  // only says how much memory it needs
  const int64_t array_bytes = ceil_div(n * static_cast<int64_t>(sizeof(int32_t)), 256) * 256;
  char* memory = static_cast<char*>(
      libraries_of(stream).workspace(4 * array_bytes + static_cast<int64_t>(sort_bytes)));
  const auto array = [&](int i) { return reinterpret_cast<int32_t*>(memory + i * array_bytes); };
  number_kernel<<<ceil_div(n, kThreads), kThreads, 0, stream.cuda()>>>(array(2), array(3), indices,
                                                                       n, first, count);
  CUDA_CHECK(cudaGetLastError());
  sort(memory + 4 * array_bytes, array(2), array(0), array(3), array(1));
  return {array(0), array(1)};
}

}  // namespace mirabelle::backend
