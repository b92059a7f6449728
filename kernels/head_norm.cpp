#include "mirabelle/kernels/head_norm.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"
#include "mirabelle/kernels/rms_norm.h"  // num_token_chunks

namespace mirabelle {
namespace {

void check_heads(const TensorView& x, const TensorView& weights) {
  MIRABELLE_CHECK(x.shape.rank() == 4 && x.shape[2] >= 3 && x.shape[3] > 0, "x has shape ", x.shape,
                  ", wanted [num_tokens, num_kv_heads, group_size + 2, head_dim]");
  check_operand("weights", weights, {2, x.shape[3]}, x);
}

}  // namespace

void head_norm_forward(const TensorView& out, const TensorView& x, const TensorView& weights,
                       double epsilon, const Stream& stream) {
  check_heads(x, weights);
  check_operand("out", out, x.shape, x);
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::head_norm_forward<D, T>(out.as<T>(), x.as<T>(), weights.as<T>(), x.shape[0],
                                     x.shape[1], x.shape[2] - 2, x.shape[3], epsilon, stream);
  });
}

void head_norm_backward(const TensorView& grad_x, const TensorView& grad_weights,
                        const TensorView& grad_out, const TensorView& x, const TensorView& weights,
                        double epsilon, const TensorView& workspace, const Stream& stream) {
  check_heads(x, weights);
  const int64_t num_chunks = num_token_chunks(x.shape[0]), head_dim = x.shape[3];
  check_operand("grad_x", grad_x, x.shape, x);
  check_wide("grad_weights", grad_weights, {2, head_dim}, x);
  check_operand("grad_out", grad_out, x.shape, x);
  check_wide("workspace", workspace, {num_chunks, 2, head_dim}, x);
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::head_norm_backward<D, T>(grad_x.as<T>(), grad_weights.as<Wide<T>>(), grad_out.as<T>(),
                                      x.as<T>(), weights.as<T>(), x.shape[0], x.shape[1],
                                      x.shape[2] - 2, head_dim, epsilon, num_chunks,
                                      workspace.as<Wide<T>>(), stream);
  });
}

}  // namespace mirabelle
