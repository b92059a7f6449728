#include "mirabelle/kernels/token_levels.h"

#include "check_levels.h"
#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

/// Throws unless `values` are one float64 for each level.
void check_levels(const char* name, const TensorView& values, const TensorView& bounds) {
  TensorView like = bounds;
  like.dtype = DType::kFloat64;
  check_operand(name, values, {bounds.shape[0] - 1}, like);
}

}  // namespace

void gather_level_weights(const TensorView& out, const TensorView& tokens, const TensorView& bounds,
                          const TensorView& weights, const Stream& stream) {
  const int64_t n = tokens.num_elements();
  check_operand("out", out, {n}, out);
  check_indices("tokens", tokens, {n}, out);
  check_level_bounds(bounds, out);
  check_levels("weights", weights, bounds);
  dispatch(out.device, out.dtype, [&]<Device D, typename T>() {
    backend::gather_level_weights<D, T>(out.as<T>(), tokens.as<int32_t>(), n, bounds.as<int32_t>(),
                                        bounds.shape[0] - 1, weights.as<double>(), stream);
  });
}

void add_level_sums(const TensorView& sums, const TensorView& x, const TensorView& tokens,
                    const TensorView& bounds, const Stream& stream) {
  const int64_t n = tokens.num_elements();
  check_operand("x", x, {n}, x);
  check_indices("tokens", tokens, {n}, x);
  check_level_bounds(bounds, x);
  check_levels("sums", sums, bounds);
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::add_level_sums<D, T>(sums.as<double>(), x.as<T>(), tokens.as<int32_t>(), n,
                                  bounds.as<int32_t>(), bounds.shape[0] - 1, stream);
  });
}

}  // namespace mirabelle
