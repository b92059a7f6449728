#include "mirabelle/kernels/squared_error.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void squared_error(const TensorView& loss, const TensorView& x, const TensorView& target,
                   double grad_scale, const Stream& stream) {
  MIRABELLE_CHECK(x.shape.rank() == 2, "x has shape ", x.shape, ", wanted [num_rows, num_columns]");
  check_operand("x", x, x.shape, x);
  check_operand("target", target, x.shape, x);
  check_operand("loss", loss, {x.shape[0]}, x);
  dispatch<float>(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::squared_error<D, T>(loss.as<T>(), x.as<T>(), target.as<T>(), x.shape[0], x.shape[1],
                                 grad_scale, stream);
  });
}

}  // namespace mirabelle
