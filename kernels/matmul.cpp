#include "mirabelle/kernels/matmul.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {

void matmul(const TensorView& out, const TensorView& a, bool transpose_a, const TensorView& b,
            bool transpose_b, Accumulate accumulate, const Stream& stream) {
  MIRABELLE_CHECK(a.shape.rank() == 2, "a has shape ", a.shape, ", wanted a matrix");
  MIRABELLE_CHECK(b.shape.rank() == 2, "b has shape ", b.shape, ", wanted a matrix");
  const int64_t m = a.shape[transpose_a ? 1 : 0], k = a.shape[transpose_a ? 0 : 1];
  const int64_t n = b.shape[transpose_b ? 0 : 1];
  check_operand("b", b, transpose_b ? Shape{n, k} : Shape{k, n}, a);
  const bool is_wide = out.dtype != a.dtype;
  (is_wide ? check_wide : check_operand)("out", out, {m, n}, a);
  dispatch(a.device, a.dtype, [&]<Device D, typename T>() {
    const auto multiply = [&]<typename Out>(Out* to) {
      backend::matmul<D, T, Out>(to, a.as<T>(), transpose_a, b.as<T>(), transpose_b,
                                 accumulate == Accumulate::kYes, m, n, k, stream);
    };
    is_wide ? multiply(out.as<Wide<T>>()) : multiply(out.as<T>());
  });
}

void linear_forward(const TensorView& out, const TensorView& x, const TensorView& weight,
                    const Stream& stream) {
  matmul(out, x, false, weight, true, Accumulate::kNo, stream);
}

void linear_backward_input(const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, Accumulate accumulate, const Stream& stream) {
  matmul(grad_x, grad_out, false, weight, false, accumulate, stream);
}

void linear_backward_weight(const TensorView& grad_weight, const TensorView& grad_out,
                            const TensorView& x, const Stream& stream) {
  matmul(grad_weight, grad_out, true, x, false, Accumulate::kYes, stream);
}

}  // namespace mirabelle
