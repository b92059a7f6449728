#include "mirabelle/kernels/bias.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"
#include "mirabelle/kernels/rms_norm.h"  // num_token_chunks

namespace mirabelle {

void add_bias(const TensorView& x, const TensorView& bias, const Stream& stream) {
  MIRABELLE_CHECK(x.shape.rank() == 2, "x has shape ", x.shape, ", wanted [num_rows, num_columns]");
  check_operand("bias", bias, {x.shape[1]}, x);
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::add_bias<D, T>(x.as<T>(), bias.as<T>(), x.shape[0], x.shape[1], stream);
  });
}

void bias_backward(const TensorView& grad_bias, const TensorView& grad, const TensorView& workspace,
                   const Stream& stream) {
  MIRABELLE_CHECK(grad.shape.rank() == 2, "grad has shape ", grad.shape,
                  ", wanted [num_rows, num_columns]");
  const int64_t num_rows = grad.shape[0], num_columns = grad.shape[1];
  const int64_t num_chunks = num_token_chunks(num_rows);
  check_wide("grad_bias", grad_bias, {num_columns}, grad);
  check_wide("workspace", workspace, {num_chunks, num_columns}, grad);
  dispatch(grad.device, grad.dtype, [&]<Device D, typename T>() {
    backend::bias_backward<D, T>(grad_bias.as<Wide<T>>(), grad.as<T>(), num_rows, num_columns,
                                 num_chunks, workspace.as<Wide<T>>(), stream);
  });
}

}  // namespace mirabelle
