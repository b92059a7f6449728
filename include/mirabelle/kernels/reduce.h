#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"
#include "mirabelle/kernels/matmul.h"  // Accumulate

namespace mirabelle {

/// out [1] float64 += sum of x [n], in float64, in an order that depends on n only.
void add_sum(const TensorView& out, const TensorView& x, const Stream& stream);
/// out = sum of x^2, in the same way.
void sum_of_squares(const TensorView& out, const TensorView& x, const Stream& stream);

// A sum of squares whose bits do not depend on how the elements are shared out over calls and
// ranks: the squares become integers, relative to the largest of them. First max_magnitude of all
// elements, then the squares of all, then the value.

/// out [1] float64 = max(out, the largest |x|); infinity if an element is not finite. out is not
/// negative.
void max_magnitude(const TensorView& out, const TensorView& x, const Stream& stream);

/// sums [2] int64 += the sum over x of floor(x^2 * 2^50 / scale^2), where scale is the smallest
/// power of two above largest [1] float64, which is the largest |x| of all elements of all calls.
/// Nothing is added if that is 0 or infinity. x^2 is taken in float64: of float32 and bfloat16 it
/// is exact. The sum is sums[0] * 2^32 + sums[1]. How it is shared out between them is not defined,
/// but `sums` of several ranks may be added up, of 2^31 elements in all.
void add_fixed_point_squares(const TensorView& sums, const TensorView& x, const TensorView& largest,
                             const Stream& stream);

/// out [1] float64 = the sum of squares that sums [2] int64 stands for, rounded once: below the
/// true one by less than scale^2 / 2^50 for each element. Infinity if `largest` is, 0 if it is 0.
void fixed_point_value(const TensorView& out, const TensorView& sums, const TensorView& largest,
                       const Stream& stream);

/// out [n...] = the sum of the rows of x [count, n...], count >= 1, in one binary tree: of several
/// rows, the first 2^k (the largest power of two below their number) are summed by themselves, the
/// others by themselves, then both are added. So ranks that each sum a part of 2^k rows and then
/// add up their sums in the same way get the same bits as one that sums all.
/// Computed in the wide dtype and rounded once. out has x's dtype, or x has its wide dtype. out may
/// be x's first row if the dtypes agree.
void tree_sum(const TensorView& out, const TensorView& x, const Stream& stream);

/// out += x, of the same dtype and shape, computed in the wide dtype and rounded once.
void add(const TensorView& out, const TensorView& x, const Stream& stream);

/// out = factor * x, or out += factor * x; the rest as of add. out may be x.
void scale_by(const TensorView& out, const TensorView& x, double factor, Accumulate accumulate,
              const Stream& stream);

/// x = 0.
void fill_zero(const TensorView& x, const Stream& stream);

namespace backend {
template <Device D, typename T>
void add_sum(double* out, const T* x, int64_t n, const Stream& stream);
template <Device D, typename T>
void sum_of_squares(double* out, const T* x, int64_t n, const Stream& stream);
template <Device D, typename T>
void max_magnitude(double* out, const T* x, int64_t n, const Stream& stream);
template <Device D, typename T>
void add_fixed_point_squares(int64_t* sums, const T* x, int64_t n, const double* largest,
                             const Stream& stream);
template <Device D>
void fixed_point_value(double* out, const int64_t* sums, const double* largest,
                       const Stream& stream);
template <Device D, typename T, typename X>  // X is T or Wide<T>
void tree_sum(T* out, const X* x, int64_t count, int64_t n, const Stream& stream);
template <Device D, typename T>
void add(T* out, const T* x, int64_t n, const Stream& stream);
template <Device D, typename T>
void scale_by(T* out, const T* x, double factor, bool accumulate, int64_t n, const Stream& stream);
template <Device D>
void fill_zero(void* x, int64_t bytes, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
