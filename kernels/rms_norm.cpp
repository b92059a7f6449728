#include "mirabelle/kernels/rms_norm.h"

#include <algorithm>

#include "check_operand.h"
#include "dropout_arguments.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

int64_t num_token_chunks(int64_t num_tokens) { return std::clamp<int64_t>(num_tokens / 64, 1, 64); }

void residual_rms_norm_forward(const TensorView& out, const TensorView& residual_out,
                               const TensorView& rstd, const TensorView& residual,
                               const TensorView& branch, const TensorView& weight, double epsilon,
                               const Dropout& dropout, const Stream& stream) {
  MIRABELLE_CHECK(residual.shape.rank() == 2, "residual has shape ", residual.shape,
                  ", wanted [num_tokens, hidden_size]");
  const int64_t num_tokens = residual.shape[0], hidden_size = residual.shape[1];
  check_operand("out", out, residual.shape, residual);
  check_wide("rstd", rstd, {num_tokens}, residual);
  check_operand("weight", weight, {hidden_size}, residual);
  if (branch) {
    check_operand("branch", branch, residual.shape, residual);
    check_operand("residual_out", residual_out, residual.shape, residual);
  }
  MIRABELLE_CHECK(hidden_size > 0, "hidden_size is 0");
  const auto arguments = backend::dropout_arguments(dropout, num_tokens, residual.device);
  dispatch(residual.device, residual.dtype, [&]<Device D, typename T>() {
    backend::residual_rms_norm_forward<D, T>(out.as<T>(), branch ? residual_out.as<T>() : nullptr,
                                             rstd.as<Wide<T>>(), residual.as<T>(),
                                             branch ? branch.as<T>() : nullptr, weight.as<T>(),
                                             num_tokens, hidden_size, epsilon, arguments, stream);
  });
}

void residual_rms_norm_backward(const TensorView& grad_residual, const TensorView& grad_branch,
                                const TensorView& grad_weight, const TensorView& grad_out,
                                const TensorView& residual_out, const TensorView& rstd,
                                const TensorView& weight, const Dropout& dropout,
                                const TensorView& workspace, const Stream& stream) {
  MIRABELLE_CHECK(residual_out.shape.rank() == 2, "residual_out has shape ", residual_out.shape,
                  ", wanted [num_tokens, hidden_size]");
  const int64_t num_tokens = residual_out.shape[0], hidden_size = residual_out.shape[1];
  const int64_t num_chunks = num_token_chunks(num_tokens);
  check_operand("grad_residual", grad_residual, residual_out.shape, residual_out);
  if (grad_branch) check_operand("grad_branch", grad_branch, residual_out.shape, residual_out);
  MIRABELLE_CHECK(!grad_branch || grad_branch.data != grad_residual.data,
                  "grad_branch may not be grad_residual");
  check_wide("grad_weight", grad_weight, {hidden_size}, residual_out);
  check_operand("grad_out", grad_out, residual_out.shape, residual_out);
  check_wide("rstd", rstd, {num_tokens}, residual_out);
  check_operand("weight", weight, {hidden_size}, residual_out);
  check_wide("workspace", workspace, {num_chunks, hidden_size}, residual_out);
  const auto arguments = backend::dropout_arguments(dropout, num_tokens, residual_out.device);
  dispatch(residual_out.device, residual_out.dtype, [&]<Device D, typename T>() {
    backend::residual_rms_norm_backward<D, T>(
        grad_residual.as<T>(), grad_branch ? grad_branch.as<T>() : nullptr,
        grad_weight.as<Wide<T>>(), grad_out.as<T>(), residual_out.as<T>(), rstd.as<Wide<T>>(),
        weight.as<T>(), num_tokens, hidden_size, num_chunks, arguments, workspace.as<Wide<T>>(),
        stream);
  });
}

}  // namespace mirabelle
