#pragma once

#include <limits>

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

// Muon (Jordan et al. 2024), with the step size of Moonlight (Liu et al. 2025): a step moves a
// matrix by the nearest semi-orthogonal matrix of its momentum, so that all its directions count
// alike. muon_momentum, then orthogonalise, then muon_update.

/// The scalars of one step.
struct MuonStep {
  double learning_rate = 0;
  double momentum = 0.95;
  double weight_decay = 0;
  double max_grad_norm =
      std::numeric_limits<double>::infinity();  ///< gradients are scaled down to it
  double max_good_norm =
      std::numeric_limits<double>::max();  ///< of gradients with more, or NaN, nothing comes
};

/// All tensors [n] of one wide dtype, in any cut of the matrices:
///   g = grad * min(1, max_grad_norm / sqrt(grad_squares))
///   exp_avg = momentum * exp_avg + g;   direction = g + momentum * exp_avg    (Nesterov's)
///
///   direction     is overwritten
///   grad_squares  [1] float64: the sum of squares of the whole gradient; absent: no clipping, and
///                 every gradient is good
///
/// If sqrt(grad_squares) is not a number up to max_good_norm, exp_avg stays and direction = 0.
void muon_momentum(const TensorView& direction, const TensorView& exp_avg, const TensorView& grad,
                   const TensorView& grad_squares, const MuonStep& step, const Stream& stream);

/// Each matrix X of x [count, rows, columns] becomes about U V^T, where X = U S V^T: first X /= its
/// Frobenius norm, then five times, with A = X X^T (X^T X and products from the right where there
/// are more rows than columns),
///   X = (3.4445 I - 4.7750 A + 2.0315 A^2) X,
/// an iteration of Newton and Schulz's kind that brings singular values from 0.0015 to 1 to
/// 0.68 to 1.21, and smaller ones to less. Zeros stay zeros.
///
///   x        a wide dtype, overwritten
///   scratch  [at least orthogonalise_scratch(x.shape)], of x's dtype
///
/// In float32 on a GPU too; bfloat16 would do, since the result is only about orthogonal anyway.
void orthogonalise(const TensorView& x, const TensorView& scratch, const Stream& stream);
/// Elements.
int64_t orthogonalise_scratch(const Shape& x);

/// One update of a flat range of matrices [rows, columns]; all tensors [n]. Nothing is changed
/// where muon_momentum changes nothing.
///   parameter -= learning_rate * (scale * direction + weight_decay * parameter)
///
///   parameter  any floating dtype
///   master     the parameter in its wide dtype, which is then what is updated, and the parameter
///              its rounded copy; absent if the parameter is wide itself
///   direction     the wide dtype
///   grad_squares  as of muon_momentum
void muon_update(const TensorView& parameter, const TensorView& master, const TensorView& direction,
                 const TensorView& grad_squares, double scale, const MuonStep& step,
                 const Stream& stream);
/// With which a step moves elements by learning_rate / 5 in the mean square, about as AdamW's does:
/// its learning rate and decay can be used (Liu et al. 2025, section 2.2).
double muon_scale(int64_t rows, int64_t columns);

namespace backend {
template <Device D, typename W>
void muon_momentum(W* direction, W* exp_avg, const W* grad, const double* grad_squares, int64_t n,
                   const MuonStep& step, const Stream& stream);
/// out [count, n]: each row of x divided by the root of its sum of squares; zeros stay zeros.
template <Device D, typename W>
void normalise_rows(W* out, const W* x, int64_t count, int64_t n, const Stream& stream);
/// square = a I + b gram + c square, each of `count` matrices [k, k].
template <Device D, typename W>
void quadratic(W* square, const W* gram, int64_t count, int64_t k, double a, double b, double c,
               const Stream& stream);
template <Device D, typename T>
void muon_update(T* parameter, Wide<T>* master, const Wide<T>* direction,
                 const double* grad_squares, int64_t n, double scale, const MuonStep& step,
                 const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
