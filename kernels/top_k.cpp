#include "mirabelle/kernels/top_k.h"

#include <limits>

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void segmented_top_k(const TensorView& values, const TensorView& indices, const TensorView& scores,
                     const TensorView& sizes, TopKOrder order, const Stream& stream) {
  MIRABELLE_CHECK(scores.shape.rank() == 2, "scores has shape ", scores.shape,
                  ", wanted [num_segments, max_size]");
  MIRABELLE_CHECK(values.shape.rank() == 2, "values has shape ", values.shape,
                  ", wanted [num_segments, k]");
  const int64_t num_segments = scores.shape[0], max_size = scores.shape[1], k = values.shape[1];
  MIRABELLE_CHECK(max_size <= std::numeric_limits<int32_t>::max(), "segments of up to ", max_size,
                  " scores, wanted at most 2^31 - 1");
  check_operand("scores", scores, scores.shape, scores);
  check_operand("values", values, {num_segments, k}, scores);
  check_indices("indices", indices, {num_segments, k}, scores);
  check_indices("sizes", sizes, {num_segments}, scores);
  dispatch<float, double>(scores.device, scores.dtype, [&]<Device D, typename T>() {
    backend::segmented_top_k<D, T>(values.as<T>(), indices.as<int32_t>(), scores.as<T>(),
                                   sizes.as<int32_t>(), num_segments, max_size, k, order, stream);
  });
}

}  // namespace mirabelle
