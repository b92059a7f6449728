#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// The k largest of each segment of `scores`, best first; equal scores in the order of their index.
///   values, indices [num_segments, k]  scores' dtype; int32, relative to the segment's start.
///                   A segment of fewer than k elements is filled up with -infinity and -1.
///   scores          [n]
///   offsets         [num_segments + 1] int32: the segments of scores
/// NaN scores are not allowed.
void segmented_top_k(const TensorView& values, const TensorView& indices, const TensorView& scores,
                     const TensorView& offsets, const Stream& stream);

namespace backend {
template <Device D, typename T>
void segmented_top_k(T* values, int32_t* indices, const T* scores, const int32_t* offsets,
                     int64_t num_segments, int64_t k, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
