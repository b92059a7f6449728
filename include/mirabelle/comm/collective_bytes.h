#pragma once

#include <algorithm>
#include <cstdint>

namespace mirabelle {

// What a rank of a group sends to the others in a collective over MPI: no more than the least that
// any algorithm without reductions on the way can do, (size - 1) / size of the tensor in each of
// the two phases. NCCL's rings send the same.

/// An all-reduce of so few bytes is a matter of latency: everything goes to all, in one phase.
constexpr int64_t kSmallAllReduceBytes = 4096;

/// Of a tensor that is cut into one piece for each rank, of ceil(num_elements / size) elements but
/// for the last ones.
inline int64_t piece_elements(int64_t num_elements, int64_t size, int64_t rank) {
  const int64_t piece = (num_elements + size - 1) / size;
  return std::clamp<int64_t>(num_elements - rank * piece, 0, piece);
}

inline int64_t reduce_scatter_bytes(int64_t num_elements, int64_t element_bytes, int64_t size,
                                    int64_t rank) {
  return (num_elements - piece_elements(num_elements, size, rank)) * element_bytes;
}

inline int64_t all_gather_bytes(int64_t num_elements, int64_t element_bytes, int64_t size,
                                int64_t rank) {
  return (size - 1) * piece_elements(num_elements, size, rank) * element_bytes;
}

inline int64_t all_reduce_bytes(int64_t num_elements, int64_t element_bytes, int64_t size,
                                int64_t rank) {
  const int64_t bytes = num_elements * element_bytes;
  if (bytes <= kSmallAllReduceBytes) return (size - 1) * bytes;
  return reduce_scatter_bytes(num_elements, element_bytes, size, rank) +
         all_gather_bytes(num_elements, element_bytes, size, rank);
}

}  // namespace mirabelle
