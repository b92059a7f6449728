#include "mirabelle/kernels/attention.h"

#include "check_offsets.h"
#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

struct QkvShape {
  int64_t num_tokens, num_kv_heads, group_size, head_dim;
  int64_t num_heads() const { return num_kv_heads * group_size; }
};

QkvShape check_qkv(const TensorView& qkv) {
  MIRABELLE_CHECK(qkv.shape.rank() == 4 && qkv.shape[2] >= 3, "qkv has shape ", qkv.shape,
                  ", wanted [num_tokens, num_kv_heads, group_size + 2, head_dim]");
  MIRABELLE_CHECK(qkv.shape[3] >= 1 && qkv.shape[3] <= kMaxHeadDim, "head_dim is ", qkv.shape[3],
                  ", wanted 1 to ", kMaxHeadDim);
  return {qkv.shape[0], qkv.shape[1], qkv.shape[2] - 2, qkv.shape[3]};
}

}  // namespace

void attention_forward(const TensorView& out, const TensorView& log_sum, const TensorView& qkv,
                       const TensorView& sequence_offsets, double scale, const Stream& stream) {
  const QkvShape shape = check_qkv(qkv);
  check_operand("out", out, {shape.num_tokens, shape.num_heads() * shape.head_dim}, qkv);
  check_wide("log_sum", log_sum, {shape.num_tokens, shape.num_heads()}, qkv);
  check_offsets("sequence_offsets", sequence_offsets, shape.num_tokens, qkv);
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::attention_forward<D, T>(out.as<T>(), log_sum.as<Wide<T>>(), qkv.as<T>(),
                                     sequence_offsets.as<int32_t>(), shape.num_tokens,
                                     sequence_offsets.shape[0] - 1, shape.num_kv_heads,
                                     shape.group_size, shape.head_dim, scale, stream);
  });
}

void attention_backward(const TensorView& grad_qkv, const TensorView& grad_out,
                        const TensorView& out, const TensorView& log_sum, const TensorView& qkv,
                        const TensorView& sequence_offsets, double scale, const Stream& stream) {
  const QkvShape shape = check_qkv(qkv);
  const Shape out_shape{shape.num_tokens, shape.num_heads() * shape.head_dim};
  check_operand("grad_qkv", grad_qkv, qkv.shape, qkv);
  check_operand("grad_out", grad_out, out_shape, qkv);
  check_operand("out", out, out_shape, qkv);
  check_wide("log_sum", log_sum, {shape.num_tokens, shape.num_heads()}, qkv);
  check_offsets("sequence_offsets", sequence_offsets, shape.num_tokens, qkv);
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::attention_backward<D, T>(
        grad_qkv.as<T>(), grad_out.as<T>(), out.as<T>(), log_sum.as<Wide<T>>(), qkv.as<T>(),
        sequence_offsets.as<int32_t>(), shape.num_tokens, sequence_offsets.shape[0] - 1,
        shape.num_kv_heads, shape.group_size, shape.head_dim, scale, stream);
  });
}

void beam_attention(const TensorView& out, const TensorView& qkv, const TensorView& prefix_qkv,
                    const TensorView& prefix_offsets, const TensorView& beam_offsets,
                    const TensorView& suffix_kv, int64_t suffix_length, double scale,
                    const Stream& stream) {
  const QkvShape shape = check_qkv(qkv);
  const int64_t num_beams = shape.num_tokens;
  check_operand("out", out, {num_beams, shape.num_heads() * shape.head_dim}, qkv);
  MIRABELLE_CHECK(prefix_qkv.shape.rank() == 4, "prefix_qkv has shape ", prefix_qkv.shape,
                  ", wanted [num_prefix_tokens, num_kv_heads, group_size + 2, head_dim]");
  check_operand("prefix_qkv", prefix_qkv,
                {prefix_qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3]}, qkv);
  check_offsets("prefix_offsets", prefix_offsets, prefix_qkv.shape[0], qkv);
  check_offsets("beam_offsets", beam_offsets, num_beams, qkv);
  MIRABELLE_CHECK(prefix_offsets.shape == beam_offsets.shape, "prefix_offsets has shape ",
                  prefix_offsets.shape, ", beam_offsets ", beam_offsets.shape,
                  ": wanted [num_users + 1] both");
  MIRABELLE_CHECK(suffix_length >= 0, "suffix_length is ", suffix_length, ", wanted 0 or more");
  if (suffix_length > 0) {
    check_operand("suffix_kv", suffix_kv,
                  {suffix_length, num_beams, shape.num_kv_heads, 2, shape.head_dim}, qkv);
  }
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::beam_attention<D, T>(
        out.as<T>(), qkv.as<T>(), prefix_qkv.as<T>(), prefix_offsets.as<int32_t>(),
        beam_offsets.as<int32_t>(), suffix_length > 0 ? suffix_kv.as<T>() : nullptr,
        beam_offsets.shape[0] - 1, num_beams, suffix_length, shape.num_kv_heads, shape.group_size,
        shape.head_dim, scale, stream);
  });
}

}  // namespace mirabelle
