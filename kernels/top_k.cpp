#include "mirabelle/kernels/top_k.h"

#include "check_offsets.h"
#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void segmented_top_k(const TensorView& values, const TensorView& indices, const TensorView& scores,
                     const TensorView& offsets, const Stream& stream) {
  MIRABELLE_CHECK(scores.shape.rank() == 1, "scores has shape ", scores.shape, ", wanted [n]");
  MIRABELLE_CHECK(values.shape.rank() == 2, "values has shape ", values.shape,
                  ", wanted [num_segments, k]");
  check_offsets("offsets", offsets, scores.shape[0], scores);
  const int64_t num_segments = offsets.shape[0] - 1, k = values.shape[1];
  check_operand("values", values, {num_segments, k}, scores);
  check_indices("indices", indices, {num_segments, k}, scores);
  dispatch<float, double>(scores.device, scores.dtype, [&]<Device D, typename T>() {
    backend::segmented_top_k<D, T>(values.as<T>(), indices.as<int32_t>(), scores.as<T>(),
                                   offsets.as<int32_t>(), num_segments, k, stream);
  });
}

}  // namespace mirabelle
