#include "mirabelle/kernels/contrastive.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void contrastive_logits(const TensorView& logits, const TensorView& partners, int64_t first_row,
                        double temperature, const Stream& stream) {
  MIRABELLE_CHECK(logits.shape.rank() == 2, "logits have shape ", logits.shape,
                  ", wanted [num_rows, num_columns]");
  const int64_t num_rows = logits.shape[0], num_columns = logits.shape[1];
  check_operand("logits", logits, logits.shape, logits);
  check_indices("partners", partners, {num_columns}, logits);
  MIRABELLE_CHECK(first_row >= 0 && first_row + num_rows <= num_columns, "rows [", first_row, ", ",
                  first_row + num_rows, ") of a batch of ", num_columns);
  MIRABELLE_CHECK(temperature > 0, "the temperature must be positive, not ", temperature);
  dispatch<float>(logits.device, logits.dtype, [&]<Device D, typename T>() {
    backend::contrastive_logits<D, T>(logits.as<T>(), partners.as<int32_t>(), num_rows, num_columns,
                                      first_row, temperature, stream);
  });
}

}  // namespace mirabelle
