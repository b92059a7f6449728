#include "mirabelle/kernels/concatenate.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void concatenate_columns(const TensorView& out, const TensorView& x, const Stream& stream) {
  MIRABELLE_CHECK(x.shape.rank() == 3, "x has shape ", x.shape,
                  ", wanted [num_shards, num_rows, shard_columns]");
  const int64_t num_rows = x.shape[1], shard_columns = x.shape[2];
  const int64_t most_columns = x.shape[0] * shard_columns;
  MIRABELLE_CHECK(out.shape.rank() == 2 && out.shape[0] == num_rows && out.shape[1] <= most_columns,
                  "out has shape ", out.shape, ", wanted [", num_rows, ", at most ", most_columns,
                  "]");
  check_operand("out", out, out.shape, out);
  check_operand("x", x, x.shape, out);
  dispatch(out.device, out.dtype, [&]<Device D, typename T>() {
    backend::concatenate_columns<D>(out.as<T>(), x.as<T>(), num_rows, out.shape[1], shard_columns,
                                    stream);
  });
}

}  // namespace mirabelle
