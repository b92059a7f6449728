#include "mirabelle/kernels/embedding.h"

#include "check_operand.h"
#include "cpu/check_indices.h"
#include "dropout_arguments.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void embedding_forward(const TensorView& out, const TensorView& tokens, const TensorView& table,
                       int64_t first_token, const Dropout& dropout, const Stream& stream) {
  MIRABELLE_CHECK(table.shape.rank() == 2, "table has shape ", table.shape,
                  ", wanted [num_rows, hidden_size]");
  MIRABELLE_CHECK(out.shape.rank() == 2, "out has shape ", out.shape,
                  ", wanted [num_tokens, hidden_size]");
  const int64_t num_tokens = out.shape[0], hidden_size = table.shape[1];
  check_operand("out", out, {num_tokens, hidden_size}, table);
  check_operand("table", table, table.shape, table);
  check_indices("tokens", tokens, {num_tokens}, table);
  const auto arguments = backend::dropout_arguments(dropout, num_tokens, table.device);
  dispatch(table.device, table.dtype, [&]<Device D, typename T>() {
    backend::embedding_forward<D, T>(out.as<T>(), tokens.as<int32_t>(), table.as<T>(), num_tokens,
                                     table.shape[0], hidden_size, first_token, arguments, stream);
  });
}

void embedding_backward(const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens, int64_t first_token, const Dropout& dropout,
                        const Stream& stream) {
  MIRABELLE_CHECK(grad_table.shape.rank() == 2, "grad_table has shape ", grad_table.shape,
                  ", wanted [num_rows, hidden_size]");
  MIRABELLE_CHECK(grad_out.shape.rank() == 2, "grad_out has shape ", grad_out.shape,
                  ", wanted [num_tokens, hidden_size]");
  const int64_t num_tokens = grad_out.shape[0], hidden_size = grad_table.shape[1];
  check_operand("grad_out", grad_out, {num_tokens, hidden_size}, grad_out);
  check_wide("grad_table", grad_table, grad_table.shape, grad_out);
  check_indices("tokens", tokens, {num_tokens}, grad_out);
  const auto arguments = backend::dropout_arguments(dropout, num_tokens, grad_out.device);
  dispatch(grad_out.device, grad_out.dtype, [&]<Device D, typename T>() {
    backend::embedding_backward<D, T>(grad_table.as<Wide<T>>(), grad_out.as<T>(),
                                      tokens.as<int32_t>(), num_tokens, grad_table.shape[0],
                                      hidden_size, first_token, arguments, stream);
  });
}

void check_tokens(const TensorView& tokens, int64_t vocab_size) {
  const auto* values = tokens.as<int32_t>();
  if (tokens.device != Device::kCpu) return;
  backend::check_index_range("tokens", values, tokens.num_elements(), 0, vocab_size);
}

void gather_rows(const TensorView& out, const TensorView& x, const TensorView& indices,
                 const Stream& stream) {
  MIRABELLE_CHECK(x.shape.rank() >= 1 && out.shape.rank() == x.shape.rank() &&
                      out.rows(0, 0).shape == x.rows(0, 0).shape,
                  "out has shape ", out.shape, ", wanted rows of x, of shape ", x.shape);
  check_operand("out", out, out.shape, x);
  check_indices("indices", indices, {out.shape[0]}, x);
  int64_t row_size = 1;
  for (int axis = 1; axis < x.shape.rank(); ++axis) row_size *= x.shape[axis];
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::gather_rows<D, T>(out.as<T>(), x.as<T>(), indices.as<int32_t>(), out.shape[0],
                               x.shape[0], row_size, stream);
  });
}

}  // namespace mirabelle
