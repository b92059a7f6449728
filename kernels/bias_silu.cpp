#include "mirabelle/kernels/bias_silu.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

void check_layer(const TensorView& x, const TensorView& bias) {
  MIRABELLE_CHECK(x.shape.rank() == 2, "x has shape ", x.shape, ", wanted [num_rows, num_columns]");
  check_operand("x", x, x.shape, x);
  check_operand("bias", bias, {x.shape[1]}, x);
}

}  // namespace

void bias_silu_forward(const TensorView& out, const TensorView& x, const TensorView& bias,
                       const Stream& stream) {
  check_layer(x, bias);
  check_operand("out", out, x.shape, x);
  dispatch<float>(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::bias_silu_forward<D, T>(out.as<T>(), x.as<T>(), bias.as<T>(), x.shape[0], x.shape[1],
                                     stream);
  });
}

void bias_silu_backward(const TensorView& grad_x, const TensorView& grad_bias,
                        const TensorView& grad_out, const TensorView& x, const TensorView& bias,
                        const Stream& stream) {
  check_layer(x, bias);
  check_operand("grad_x", grad_x, x.shape, x);
  check_operand("grad_bias", grad_bias, bias.shape, x);
  check_operand("grad_out", grad_out, x.shape, x);
  dispatch<float>(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::bias_silu_backward<D, T>(grad_x.as<T>(), grad_bias.as<T>(), grad_out.as<T>(),
                                      x.as<T>(), bias.as<T>(), x.shape[0], x.shape[1], stream);
  });
}

}  // namespace mirabelle
