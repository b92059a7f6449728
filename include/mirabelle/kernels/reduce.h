#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// out [1] float64 += sum of x [n], in float64, in an order that depends on n only.
void add_sum(const TensorView& out, const TensorView& x, const Stream& stream);
/// out = sum of x^2, in the same way.
void sum_of_squares(const TensorView& out, const TensorView& x, const Stream& stream);

/// x = 0.
void fill_zero(const TensorView& x, const Stream& stream);

namespace backend {
template <Device D, typename T>
void add_sum(double* out, const T* x, int64_t n, const Stream& stream);
template <Device D, typename T>
void sum_of_squares(double* out, const T* x, int64_t n, const Stream& stream);
template <Device D>
void fill_zero(void* x, int64_t bytes, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
