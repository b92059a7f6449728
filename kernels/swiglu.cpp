#include "mirabelle/kernels/swiglu.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

/// The shape of `out` that belongs to gate_up.
Shape checked_out_shape(const TensorView& gate_up) {
  const Shape& shape = gate_up.shape;
  MIRABELLE_CHECK(shape.rank() == 4 && shape[2] == 2, "gate_up has shape ", shape,
                  ", wanted [num_tokens, num_blocks, 2, block_size]");
  return {shape[0], shape[1] * shape[3]};
}

}  // namespace

void swiglu_forward(const TensorView& out, const TensorView& gate_up, const Stream& stream) {
  check_operand("out", out, checked_out_shape(gate_up), gate_up);
  const Shape& shape = gate_up.shape;
  dispatch(gate_up.device, gate_up.dtype, [&]<Device D, typename T>() {
    backend::swiglu_forward<D, T>(out.as<T>(), gate_up.as<T>(), shape[0], shape[1], shape[3],
                                  stream);
  });
}

void swiglu_backward(const TensorView& grad_gate_up, const TensorView& grad_out,
                     const TensorView& gate_up, const Stream& stream) {
  check_operand("grad_out", grad_out, checked_out_shape(gate_up), gate_up);
  check_operand("grad_gate_up", grad_gate_up, gate_up.shape, gate_up);
  const Shape& shape = gate_up.shape;
  dispatch(gate_up.device, gate_up.dtype, [&]<Device D, typename T>() {
    backend::swiglu_backward<D, T>(grad_gate_up.as<T>(), grad_out.as<T>(), gate_up.as<T>(),
                                   shape[0], shape[1], shape[3], stream);
  });
}

}  // namespace mirabelle
