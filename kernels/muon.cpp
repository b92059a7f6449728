#include "mirabelle/kernels/muon.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"
#include "mirabelle/kernels/matmul.h"

namespace mirabelle {

void muon_momentum(const TensorView& direction, const TensorView& exp_avg, const TensorView& grad,
                   const TensorView& grad_squares, const MuonStep& step, const Stream& stream) {
  MIRABELLE_CHECK(grad.shape.rank() == 1, "grad has shape ", grad.shape, ", wanted [n]");
  check_operand("direction", direction, grad.shape, grad);
  check_operand("exp_avg", exp_avg, grad.shape, grad);
  check_grad_squares(grad_squares, grad);
  MIRABELLE_CHECK(step.momentum >= 0 && step.momentum < 1, "Muon wants a momentum in [0, 1), not ",
                  step.momentum);
  dispatch<float>(grad.device, grad.dtype, [&]<Device D, typename W>() {
    backend::muon_momentum<D>(direction.as<W>(), exp_avg.as<W>(), grad.as<W>(),
                              grad_squares ? grad_squares.as<double>() : nullptr, grad.shape[0],
                              step, stream);
  });
}

int64_t orthogonalise_scratch(const Shape& x) {
  const int64_t k = std::min(x[1], x[2]);
  return x.num_elements() + 2 * x[0] * k * k;
}

void orthogonalise(const TensorView& x, const TensorView& scratch, const Stream& stream) {
  MIRABELLE_CHECK(x.shape.rank() == 3, "x has shape ", x.shape, ", wanted [count, rows, columns]");
  check_operand("x", x, x.shape, x);
  const int64_t num_scratch = orthogonalise_scratch(x.shape);
  MIRABELLE_CHECK(scratch.shape.rank() == 1 && scratch.shape[0] >= num_scratch,
                  "scratch has shape ", scratch.shape, ", wanted at least [", num_scratch, "]");
  check_operand("scratch", scratch, scratch.shape, x);
  if (x.empty()) return;
  const int64_t count = x.shape[0], rows = x.shape[1], columns = x.shape[2];
  const bool is_tall = rows > columns;
  const int64_t k = std::min(rows, columns);
  const auto take = [&](int64_t begin, const Shape& shape) {
    return scratch.rows(begin, begin + shape.num_elements()).reshaped(shape);
  };
  TensorView from = take(0, x.shape), to = x;
  const TensorView gram = take(x.num_elements(), {count, k, k});
  const TensorView polynomial = take(x.num_elements() + gram.num_elements(), {count, k, k});
  dispatch<float>(x.device, x.dtype, [&]<Device D, typename W>() {
    backend::normalise_rows<D>(from.as<W>(), x.as<W>(), count, rows * columns, stream);
    constexpr int kSteps = 5;  // odd: the last one writes x
    for (int i = 0; i < kSteps; ++i) {
      batched_matmul(gram, from, is_tall, from, !is_tall, Accumulate::kNo, stream);
      batched_matmul(polynomial, gram, false, gram, false, Accumulate::kNo, stream);
      backend::quadratic<D>(polynomial.as<W>(), gram.as<W>(), count, k, 3.4445, -4.7750, 2.0315,
                            stream);
      batched_matmul(to, is_tall ? from : polynomial, false, is_tall ? polynomial : from, false,
                     Accumulate::kNo, stream);
      std::swap(from, to);
    }
  });
}

double muon_scale(int64_t rows, int64_t columns) {
  return 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
}

void muon_update(const TensorView& parameter, const TensorView& master, const TensorView& direction,
                 const TensorView& grad_squares, double scale, const MuonStep& step,
                 const Stream& stream) {
  check_parameter(parameter, master);
  check_wide("direction", direction, parameter.shape, parameter);
  check_grad_squares(grad_squares, parameter);
  dispatch(parameter.device, parameter.dtype, [&]<Device D, typename T>() {
    backend::muon_update<D, T>(parameter.as<T>(), master ? master.as<Wide<T>>() : nullptr,
                               direction.as<Wide<T>>(),
                               grad_squares ? grad_squares.as<double>() : nullptr,
                               parameter.shape[0], scale, step, stream);
  });
}

}  // namespace mirabelle
