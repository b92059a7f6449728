#include "mirabelle/kernels/convert.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void round_to(const TensorView& out, const TensorView& x, const Stream& stream) {
  check_wide("x", x, out.shape, out);
  dispatch(out.device, out.dtype, [&]<Device D, typename T>() {
    backend::round_to<D, T>(out.as<T>(), x.as<Wide<T>>(), out.num_elements(), stream);
  });
}

}  // namespace mirabelle
