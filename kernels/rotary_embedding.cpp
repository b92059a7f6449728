#include "mirabelle/kernels/rotary_embedding.h"

#include <cmath>

#include "check_operand.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

struct QkvShape {
  int64_t num_tokens, num_kv_heads, group_size, head_dim;
};

/// Checks all operands of the split, whichever of the first two is the output.
QkvShape check_projection(const char* projected_name, const TensorView& projected,
                          const char* qkv_name, const TensorView& qkv, const TensorView& positions,
                          const TensorView& table) {
  const Shape& p = projected.shape;
  MIRABELLE_CHECK(p.rank() == 4 && p[2] >= 3, projected_name, " has shape ", p,
                  ", wanted [num_tokens, num_kv_heads, group_size + 2, head_dim]");
  const QkvShape shape{p[0], p[1], p[2] - 2, p[3]};
  MIRABELLE_CHECK(shape.head_dim % 2 == 0, "head_dim is ", shape.head_dim,
                  ", wanted an even number");
  check_operand(projected_name, projected, p, qkv);
  check_operand(qkv_name, qkv, {p[0], p[1] * p[2], p[3]}, qkv);
  MIRABELLE_CHECK(table.shape.rank() == 3, "table has shape ", table.shape,
                  ", wanted [max_seq_len, head_dim / 2, 2]");
  check_wide("table", table, {table.shape[0], shape.head_dim / 2, 2}, qkv);
  check_indices("positions", positions, {shape.num_tokens}, qkv);
  return shape;
}

}  // namespace

std::vector<double> rotary_frequencies(int64_t head_dim, double theta) {
  MIRABELLE_CHECK(theta > 0, "theta is ", theta, ", wanted a positive number");
  std::vector<double> frequencies;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    frequencies.push_back(std::pow(theta, -2.0 * static_cast<double>(i) / head_dim));
  }
  return frequencies;
}

void fill_rotary_table(const TensorView& table, std::span<const double> frequencies,
                       double amplitude, const Stream& stream) {
  const auto half = static_cast<int64_t>(frequencies.size());
  MIRABELLE_CHECK(table.shape.rank() == 3 && table.shape[1] == half && table.shape[2] == 2,
                  "table has shape ", table.shape, ", wanted [max_seq_len, ", half, ", 2]");
  const auto fill = [&]<typename T>(T) {
    std::vector<T> values(table.num_elements());
    for (int64_t i = 0; i < table.shape[0] * half; ++i) {
      const double angle = static_cast<double>(i / half) * frequencies[i % half];
      values[2 * i] = static_cast<T>(amplitude * std::cos(angle));
      values[2 * i + 1] = static_cast<T>(amplitude * std::sin(angle));
    }
    copy(table, view_of(values).reshaped(table.shape), stream);
    stream.synchronize();
  };
  table.dtype == DType::kFloat64 ? fill(double{}) : fill(float{});
}

void split_and_rotate(const TensorView& qkv, const TensorView& projected,
                      const TensorView& positions, const TensorView& table, const Stream& stream) {
  const QkvShape shape = check_projection("projected", projected, "qkv", qkv, positions, table);
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::split_and_rotate<D, T>(qkv.as<T>(), projected.as<T>(), positions.as<int32_t>(),
                                    table.as<Wide<T>>(), shape.num_tokens, table.shape[0],
                                    shape.num_kv_heads, shape.group_size, shape.head_dim, stream);
  });
}

void split_and_rotate_backward(const TensorView& grad_projected, const TensorView& grad_qkv,
                               const TensorView& positions, const TensorView& table,
                               const Stream& stream) {
  const QkvShape shape =
      check_projection("grad_projected", grad_projected, "grad_qkv", grad_qkv, positions, table);
  dispatch(grad_qkv.device, grad_qkv.dtype, [&]<Device D, typename T>() {
    backend::split_and_rotate_backward<D, T>(grad_projected.as<T>(), grad_qkv.as<T>(),
                                             positions.as<int32_t>(), table.as<Wide<T>>(),
                                             shape.num_tokens, table.shape[0], shape.num_kv_heads,
                                             shape.group_size, shape.head_dim, stream);
  });
}

}  // namespace mirabelle
