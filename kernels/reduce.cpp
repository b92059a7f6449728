#include "mirabelle/kernels/reduce.h"

#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

void check_result(const TensorView& out, const TensorView& x) {
  MIRABELLE_CHECK(out.shape == Shape{1} && out.dtype == DType::kFloat64, "out is ",
                  to_string(out.dtype), " ", out.shape, ", wanted float64 [1]");
  MIRABELLE_CHECK(out.device == x.device, "out is on ", to_string(out.device), ", wanted ",
                  to_string(x.device));
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

void fill_zero(const TensorView& x, const Stream& stream) {
  if (x.empty()) return;
  dispatch(x.device, DType::kFloat32,  // zero bytes are zeros of every dtype
           [&]<Device D, typename>() { backend::fill_zero<D>(x.data, x.bytes(), stream); });
}

}  // namespace mirabelle
