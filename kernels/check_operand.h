#pragma once

#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// Throws unless `tensor` has memory and this shape, and the dtype and device of `like`.
inline void check_operand(const char* name, const TensorView& tensor, const Shape& shape,
                          const TensorView& like) {
  MIRABELLE_CHECK(tensor.shape == shape, name, " has shape ", tensor.shape, ", wanted ", shape);
  MIRABELLE_CHECK(tensor || tensor.empty(), name, " ", shape, " has no memory");
  MIRABELLE_CHECK(tensor.dtype == like.dtype, name, " is ", to_string(tensor.dtype), ", wanted ",
                  to_string(like.dtype));
  MIRABELLE_CHECK(tensor.device == like.device, name, " is on ", to_string(tensor.device),
                  ", wanted ", to_string(like.device));
}

/// The same for statistics and parameter gradients, which have the wide dtype of `like`.
inline void check_wide(const char* name, const TensorView& tensor, const Shape& shape,
                       const TensorView& like) {
  TensorView wide_like = like;
  wide_like.dtype = wide(like.dtype);
  check_operand(name, tensor, shape, wide_like);
}

/// What an optimizer updates: flat, with a master copy if its dtype is not wide itself.
inline void check_parameter(const TensorView& parameter, const TensorView& master) {
  MIRABELLE_CHECK(parameter.shape.rank() == 1, "parameter has shape ", parameter.shape,
                  ", wanted [n]");
  const bool needs_master = wide(parameter.dtype) != parameter.dtype;
  MIRABELLE_CHECK(static_cast<bool>(master) == needs_master, "a ", to_string(parameter.dtype),
                  " parameter ", needs_master ? "needs a" : "has no", " master copy");
  if (master) check_wide("master", master, parameter.shape, parameter);
}

/// What clips gradients; may be absent.
inline void check_grad_squares(const TensorView& grad_squares, const TensorView& like) {
  if (!grad_squares) return;
  TensorView sum_like = like;
  sum_like.dtype = DType::kFloat64;
  check_operand("grad_squares", grad_squares, {1}, sum_like);
}

/// As check_operand, for index tensors, which are int32 whatever the others are.
inline void check_indices(const char* name, const TensorView& tensor, const Shape& shape,
                          const TensorView& like) {
  MIRABELLE_CHECK(tensor.shape == shape, name, " has shape ", tensor.shape, ", wanted ", shape);
  MIRABELLE_CHECK(tensor || tensor.empty(), name, " ", shape, " has no memory");
  MIRABELLE_CHECK(tensor.dtype == DType::kInt32, name, " is ", to_string(tensor.dtype),
                  ", wanted int32");
  MIRABELLE_CHECK(tensor.device == like.device, name, " is on ", to_string(tensor.device),
                  ", wanted ", to_string(like.device));
}

}  // namespace mirabelle
