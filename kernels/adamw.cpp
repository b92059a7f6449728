#include "mirabelle/kernels/adamw.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void adamw_update(const TensorView& parameter, const TensorView& master, const TensorView& exp_avg,
                  const TensorView& exp_avg_sq, const TensorView& grad,
                  const TensorView& grad_squares, const AdamWStep& step, const Stream& stream) {
  check_parameter(parameter, master);
  check_wide("exp_avg", exp_avg, parameter.shape, parameter);
  check_wide("exp_avg_sq", exp_avg_sq, parameter.shape, parameter);
  check_wide("grad", grad, parameter.shape, parameter);
  check_grad_squares(grad_squares, parameter);
  MIRABELLE_CHECK(step.step >= 1, "AdamW counts its steps from 1, not ", step.step);
  MIRABELLE_CHECK(step.beta1 >= 0 && step.beta1 < 1 && step.beta2 >= 0 && step.beta2 < 1,
                  "AdamW wants beta1 and beta2 in [0, 1), not ", step.beta1, " and ", step.beta2);
  dispatch(parameter.device, parameter.dtype, [&]<Device D, typename T>() {
    backend::adamw_update<D, T>(parameter.as<T>(), master ? master.as<Wide<T>>() : nullptr,
                                exp_avg.as<Wide<T>>(), exp_avg_sq.as<Wide<T>>(), grad.as<Wide<T>>(),
                                grad_squares ? grad_squares.as<double>() : nullptr,
                                parameter.shape[0], step, stream);
  });
}

}  // namespace mirabelle
