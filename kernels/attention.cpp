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

QkvShape check_qkv(const TensorView& qkv, const TensorView& out) {
  MIRABELLE_CHECK(qkv.shape.rank() == 3, "qkv has shape ", qkv.shape,
                  ", wanted [num_tokens, num_heads + 2 * num_kv_heads, head_dim]");
  const int64_t num_tokens = qkv.shape[0], head_dim = qkv.shape[2];
  MIRABELLE_CHECK(head_dim >= 1 && head_dim <= kMaxHeadDim, "head_dim is ", head_dim,
                  ", wanted 1 to ", kMaxHeadDim);
  MIRABELLE_CHECK(out.shape.rank() == 2 && out.shape[1] % head_dim == 0, "out has shape ",
                  out.shape, ", wanted [", num_tokens, ", a multiple of ", head_dim, "]");
  const int64_t num_heads = out.shape[1] / head_dim;
  const int64_t num_kv_heads = (qkv.shape[1] - num_heads) / 2;
  MIRABELLE_CHECK(num_heads >= 1 && num_kv_heads >= 1 && num_heads % num_kv_heads == 0 &&
                      num_heads + 2 * num_kv_heads == qkv.shape[1],
                  "qkv has ", qkv.shape[1], " heads and out ", num_heads,
                  ", wanted num_heads + 2 * num_kv_heads and a multiple of num_kv_heads");
  check_operand("qkv", qkv, qkv.shape, qkv);
  check_operand("out", out, {num_tokens, num_heads * head_dim}, qkv);
  return {num_tokens, num_kv_heads, num_heads / num_kv_heads, head_dim};
}

void check_sequences(const TensorView& offsets, int64_t num_tokens, int64_t max_sequence_tokens,
                     const TensorView& like) {
  check_offsets("sequence_offsets", offsets, num_tokens, like);
  if (offsets.device != Device::kCpu) return;
  const int32_t* values = offsets.as<int32_t>();
  for (int64_t i = 0; i + 1 < offsets.shape[0]; ++i) {
    MIRABELLE_CHECK(values[i + 1] - values[i] <= max_sequence_tokens, "sequence ", i, " has ",
                    values[i + 1] - values[i], " tokens, max_sequence_tokens is ",
                    max_sequence_tokens);
  }
}

}  // namespace

void attention_forward(const TensorView& out, const TensorView& log_sum, const TensorView& qkv,
                       const TensorView& sequence_offsets, int64_t max_sequence_tokens,
                       double scale, const Stream& stream) {
  const QkvShape shape = check_qkv(qkv, out);
  check_wide("log_sum", log_sum, {shape.num_tokens, shape.num_heads()}, qkv);
  check_sequences(sequence_offsets, shape.num_tokens, max_sequence_tokens, qkv);
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::attention_forward<D, T>(
        out.as<T>(), log_sum.as<Wide<T>>(), qkv.as<T>(), sequence_offsets.as<int32_t>(),
        shape.num_tokens, sequence_offsets.shape[0] - 1, max_sequence_tokens, shape.num_kv_heads,
        shape.group_size, shape.head_dim, scale, stream);
  });
}

void attention_backward(const TensorView& grad_qkv, const TensorView& grad_out,
                        const TensorView& out, const TensorView& log_sum, const TensorView& qkv,
                        const TensorView& sequence_offsets, int64_t max_sequence_tokens,
                        double scale, const Stream& stream) {
  const QkvShape shape = check_qkv(qkv, out);
  check_operand("grad_qkv", grad_qkv, qkv.shape, qkv);
  check_operand("grad_out", grad_out, out.shape, qkv);
  check_wide("log_sum", log_sum, {shape.num_tokens, shape.num_heads()}, qkv);
  check_sequences(sequence_offsets, shape.num_tokens, max_sequence_tokens, qkv);
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::attention_backward<D, T>(
        grad_qkv.as<T>(), grad_out.as<T>(), out.as<T>(), log_sum.as<Wide<T>>(), qkv.as<T>(),
        sequence_offsets.as<int32_t>(), shape.num_tokens, sequence_offsets.shape[0] - 1,
        max_sequence_tokens, shape.num_kv_heads, shape.group_size, shape.head_dim, scale, stream);
  });
}

void beam_attention(const TensorView& out, const TensorView& qkv, const TensorView& prefix_qkv,
                    const TensorView& prefix_offsets, const TensorView& beam_offsets,
                    const TensorView& suffix_kv, int64_t suffix_length, double scale,
                    const Stream& stream) {
  const QkvShape shape = check_qkv(qkv, out);
  const int64_t num_beams = shape.num_tokens;
  MIRABELLE_CHECK(prefix_qkv.shape.rank() == 3, "prefix_qkv has shape ", prefix_qkv.shape,
                  ", wanted [num_prefix_tokens, num_heads + 2 * num_kv_heads, head_dim]");
  check_operand("prefix_qkv", prefix_qkv, {prefix_qkv.shape[0], qkv.shape[1], qkv.shape[2]}, qkv);
  check_offsets("prefix_offsets", prefix_offsets, prefix_qkv.shape[0], qkv);
  check_offsets("beam_offsets", beam_offsets, num_beams, qkv);
  MIRABELLE_CHECK(prefix_offsets.shape == beam_offsets.shape, "prefix_offsets has shape ",
                  prefix_offsets.shape, ", beam_offsets ", beam_offsets.shape,
                  ": wanted [num_users + 1] both");
  MIRABELLE_CHECK(suffix_length >= 0, "suffix_length is ", suffix_length, ", wanted 0 or more");
  if (suffix_length > 0) {
    check_operand("suffix_kv", suffix_kv,
                  {suffix_length, num_beams, 2, shape.num_kv_heads, shape.head_dim}, qkv);
  }
  dispatch(qkv.device, qkv.dtype, [&]<Device D, typename T>() {
    backend::beam_attention<D, T>(
        out.as<T>(), qkv.as<T>(), prefix_qkv.as<T>(), prefix_offsets.as<int32_t>(),
        beam_offsets.as<int32_t>(), suffix_length > 0 ? suffix_kv.as<T>() : nullptr,
        beam_offsets.shape[0] - 1, prefix_qkv.shape[0], num_beams, suffix_length,
        shape.num_kv_heads, shape.group_size, shape.head_dim, scale, stream);
  });
}

}  // namespace mirabelle
