#include "mirabelle/kernels/adamw.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void adamw_update(const TensorView& parameter, const TensorView& exp_avg,
                  const TensorView& exp_avg_sq, const TensorView& grad, const AdamWStep& step,
                  const Stream& stream) {
  MIRABELLE_CHECK(parameter.shape.rank() == 1, "parameter has shape ", parameter.shape,
                  ", wanted [n]");
  check_operand("exp_avg", exp_avg, parameter.shape, parameter);
  check_operand("exp_avg_sq", exp_avg_sq, parameter.shape, parameter);
  check_operand("grad", grad, parameter.shape, parameter);
  MIRABELLE_CHECK(step.step >= 1, "AdamW counts its steps from 1, not ", step.step);
  MIRABELLE_CHECK(step.beta1 >= 0 && step.beta1 < 1 && step.beta2 >= 0 && step.beta2 < 1,
                  "AdamW wants beta1 and beta2 in [0, 1), not ", step.beta1, " and ", step.beta2);
  dispatch(parameter.device, parameter.dtype, [&]<Device D, typename T>() {
    backend::adamw_update<D, T>(parameter.as<T>(), exp_avg.as<T>(), exp_avg_sq.as<T>(),
                                grad.as<T>(), parameter.shape[0], step, stream);
  });
}

}  // namespace mirabelle
