#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// What segmented_top_k sorts the elements by that it has chosen.
enum class TopKOrder { kBestFirst, kByIndex };

/// The largest k that the CUDA backend takes.
inline constexpr int64_t kMaxTopKOnCuda = 8192;

/// The k largest of each segment of `scores`; of equal ones, those of the lower indices. A score of
/// -infinity marks what must not be chosen.
///   values, indices [num_segments, k]  scores' dtype; int32, relative to the segment's start. In
///                   either order, a segment with less to choose from than k elements is filled up
///                   with -infinity and -1 at its end.
///   scores          [num_segments, max_size]
///   sizes           [num_segments] int32: how many scores a segment has, the first of its row
/// With kBestFirst, equal scores are in the order of their index. NaN scores are not allowed.
void segmented_top_k(const TensorView& values, const TensorView& indices, const TensorView& scores,
                     const TensorView& sizes, TopKOrder order, const Stream& stream);

namespace backend {
template <Device D, typename T>
void segmented_top_k(T* values, int32_t* indices, const T* scores, const int32_t* sizes,
                     int64_t num_segments, int64_t max_size, int64_t k, TopKOrder order,
                     const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
