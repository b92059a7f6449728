#include "mirabelle/kernels/reduce.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

void check_numbers(const char* name, const TensorView& numbers, int64_t count, DType dtype,
                   const TensorView& x) {
  MIRABELLE_CHECK(numbers.shape == Shape{count} && numbers.dtype == dtype, name, " is ",
                  to_string(numbers.dtype), " ", numbers.shape, ", wanted ", to_string(dtype), " [",
                  count, "]");
  MIRABELLE_CHECK(numbers.device == x.device, name, " is on ", to_string(numbers.device),
                  ", wanted ", to_string(x.device));
}

void check_result(const TensorView& out, const TensorView& x) {
  check_numbers("out", out, 1, DType::kFloat64, x);
}

}  // namespace

void add_sum(const TensorView& out, const TensorView& x, const Stream& stream) {
  check_result(out, x);
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::add_sum<D, T>(out.as<double>(), x.as<T>(), x.num_elements(), stream);
  });
}

void sum_of_squares(const TensorView& out, const TensorView& x, const Stream& stream) {
  check_result(out, x);
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::sum_of_squares<D, T>(out.as<double>(), x.as<T>(), x.num_elements(), stream);
  });
}

void max_magnitude(const TensorView& out, const TensorView& x, const Stream& stream) {
  check_result(out, x);
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::max_magnitude<D>(out.as<double>(), x.as<T>(), x.num_elements(), stream);
  });
}

void add_fixed_point_squares(const TensorView& sums, const TensorView& x, const TensorView& largest,
                             const Stream& stream) {
  check_numbers("sums", sums, 2, DType::kInt64, x);
  check_numbers("largest", largest, 1, DType::kFloat64, x);
  dispatch(x.device, x.dtype, [&]<Device D, typename T>() {
    backend::add_fixed_point_squares<D>(sums.as<int64_t>(), x.as<T>(), x.num_elements(),
                                        largest.as<double>(), stream);
  });
}

void fixed_point_value(const TensorView& out, const TensorView& sums, const TensorView& largest,
                       const Stream& stream) {
  check_result(out, sums);
  check_numbers("sums", sums, 2, DType::kInt64, sums);
  check_numbers("largest", largest, 1, DType::kFloat64, sums);
  dispatch(sums.device, DType::kFloat32, [&]<Device D, typename>() {  // whatever x was
    backend::fixed_point_value<D>(out.as<double>(), sums.as<int64_t>(), largest.as<double>(),
                                  stream);
  });
}

void tree_sum(const TensorView& out, const TensorView& x, const Stream& stream) {
  MIRABELLE_CHECK(x.shape.rank() >= 1 && x.shape[0] >= 1, "x has shape ", x.shape,
                  ", wanted [at least 1, n...]");
  const int64_t count = x.shape[0], n = out.num_elements();
  MIRABELLE_CHECK(n * count == x.num_elements(), "out has shape ", out.shape,
                  ", wanted a row of x, of shape ", x.shape);
  const bool is_wide = x.dtype != out.dtype;
  if (is_wide) {
    check_wide("x", x, x.shape, out);
  } else {
    check_operand("x", x, x.shape, out);
  }
  check_operand("out", out, out.shape, out);
  dispatch(out.device, out.dtype, [&]<Device D, typename T>() {
    if (is_wide) {
      backend::tree_sum<D>(out.as<T>(), x.as<Wide<T>>(), count, n, stream);
    } else {
      backend::tree_sum<D>(out.as<T>(), x.as<T>(), count, n, stream);
    }
  });
}

void add(const TensorView& out, const TensorView& x, const Stream& stream) {
  check_operand("out", out, out.shape, out);
  check_operand("x", x, out.shape, out);
  dispatch(out.device, out.dtype, [&]<Device D, typename T>() {
    backend::add<D>(out.as<T>(), x.as<T>(), out.num_elements(), stream);
  });
}

void scale_by(const TensorView& out, const TensorView& x, double factor, Accumulate accumulate,
              const Stream& stream) {
  check_operand("out", out, out.shape, out);
  check_operand("x", x, out.shape, out);
  dispatch(out.device, out.dtype, [&]<Device D, typename T>() {
    backend::scale_by<D>(out.as<T>(), x.as<T>(), factor, accumulate == Accumulate::kYes,
                         out.num_elements(), stream);
  });
}

void fill_zero(const TensorView& x, const Stream& stream) {
  if (x.empty()) return;
  dispatch(x.device, DType::kFloat32,  // zero bytes are zeros of every dtype
           [&]<Device D, typename>() { backend::fill_zero<D>(x.data, x.bytes(), stream); });
}

}  // namespace mirabelle
