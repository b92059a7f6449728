#include "mirabelle/kernels/matmul.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

struct Sizes {
  int64_t count, m, n, k;
};

/// Operands of these sizes, whatever their shapes are.
void multiply(const TensorView& out, const TensorView& a, bool transpose_a, const TensorView& b,
              bool transpose_b, Accumulate accumulate, const Sizes& sizes, const Stream& stream) {
  dispatch(a.device, a.dtype, [&]<Device D, typename T>() {
    const auto multiply_to = [&]<typename Out>(Out* to) {
      backend::matmul<D, T, Out>(to, a.as<T>(), transpose_a, b.as<T>(), transpose_b,
                                 accumulate == Accumulate::kYes, sizes.count, sizes.m, sizes.n,
                                 sizes.k, stream);
    };
    out.dtype == a.dtype ? multiply_to(out.as<T>()) : multiply_to(out.as<Wide<T>>());
  });
}

void check_out(const TensorView& out, const Shape& shape, const TensorView& a) {
  (out.dtype == a.dtype ? check_operand : check_wide)("out", out, shape, a);
}

}  // namespace

void matmul(const TensorView& out, const TensorView& a, bool transpose_a, const TensorView& b,
            bool transpose_b, Accumulate accumulate, const Stream& stream) {
  MIRABELLE_CHECK(a.shape.rank() == 2, "a has shape ", a.shape, ", wanted a matrix");
  MIRABELLE_CHECK(b.shape.rank() == 2, "b has shape ", b.shape, ", wanted a matrix");
  const int64_t m = a.shape[transpose_a ? 1 : 0], k = a.shape[transpose_a ? 0 : 1];
  const int64_t n = b.shape[transpose_b ? 0 : 1];
  check_operand("b", b, transpose_b ? Shape{n, k} : Shape{k, n}, a);
  check_out(out, {m, n}, a);
  multiply(out, a, transpose_a, b, transpose_b, accumulate, {1, m, n, k}, stream);
}

void batched_matmul(const TensorView& out, const TensorView& a, bool transpose_a,
                    const TensorView& b, bool transpose_b, Accumulate accumulate,
                    const Stream& stream) {
  MIRABELLE_CHECK(a.shape.rank() == 3, "a has shape ", a.shape, ", wanted [count, rows, columns]");
  MIRABELLE_CHECK(b.shape.rank() == 3, "b has shape ", b.shape, ", wanted [count, rows, columns]");
  const int64_t count = a.shape[0];
  const int64_t m = a.shape[transpose_a ? 2 : 1], k = a.shape[transpose_a ? 1 : 2];
  const int64_t n = b.shape[transpose_b ? 1 : 2];
  check_operand("b", b, transpose_b ? Shape{count, n, k} : Shape{count, k, n}, a);
  check_out(out, {count, m, n}, a);
  multiply(out, a, transpose_a, b, transpose_b, accumulate, {count, m, n, k}, stream);
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
