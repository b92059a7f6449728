#include "mirabelle/kernels/rotary_embedding.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void fill_rotary_table(const TensorView& table, double theta, const Stream& stream) {
  MIRABELLE_CHECK(table.shape.rank() == 3 && table.shape[2] == 2, "table has shape ", table.shape,
                  ", wanted [max_seq_len, head_dim / 2, 2]");
  MIRABELLE_CHECK(theta > 0, "theta is ", theta, ", wanted a positive number");
  dispatch<float>(table.device, table.dtype, [&]<Device D, typename T>() {
    backend::fill_rotary_table<D, T>(table.as<T>(), table.shape[0], 2 * table.shape[1], theta,
                                     stream);
  });
}

void rotate_queries_and_keys(const TensorView& qkv, const TensorView& positions,
                             const TensorView& table, Rotation rotation, const Stream& stream) {
  const Shape& shape = qkv.shape;
  MIRABELLE_CHECK(shape.rank() == 4 && shape[2] >= 3, "qkv has shape ", shape,
                  ", wanted [num_tokens, num_kv_heads, group_size + 2, head_dim]");
  const int64_t head_dim = shape[3];
  MIRABELLE_CHECK(head_dim % 2 == 0, "head_dim is ", head_dim, ", wanted an even number");
  MIRABELLE_CHECK(table.shape.rank() == 3, "table has shape ", table.shape,
                  ", wanted [max_seq_len, head_dim / 2, 2]");
  check_wide("table", table, {table.shape[0], head_dim / 2, 2}, qkv);
  check_indices("positions", positions, {shape[0]}, qkv);
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::rotate_queries_and_keys<D, T>(
        qkv.as<T>(), positions.as<int32_t>(), table.as<Wide<T>>(), shape[0], table.shape[0],
        shape[1], shape[2] - 2, head_dim, rotation == Rotation::kBackward, stream);
  });
}

}  // namespace mirabelle
