#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// One level of residual quantization.
///   codes     [n] int32
///   residual  [n, codebook_dim]
///   codebook  [codebook_size, codebook_dim]

/// codes[i] = the row of the codebook nearest to residual[i] (squared L2; ties to the lower index).
/// Distances are compared as |c|^2 / 2 - r c, whose products come from matmul.
///   workspace [(n + 1) * codebook_size], overwritten; of the residual's dtype
/// Throws if codebook_size is 0 and n is not.
void nearest_code(const TensorView& codes, const TensorView& residual, const TensorView& codebook,
                  const TensorView& workspace, const Stream& stream);

/// residual[i] -= codebook[codes[i]]. Throws if a code is not a row of the codebook (where the host
/// can read it).
void subtract_code(const TensorView& residual, const TensorView& codes, const TensorView& codebook,
                   const Stream& stream);

/// distances[i] = |residual[i] - codebook[codes[i]]|^2, from the differences: 0 exactly where a
/// residual equals its code.
///   distances [n], of the residual's dtype
/// Throws as subtract_code does.
void code_distances(const TensorView& distances, const TensorView& residual,
                    const TensorView& codes, const TensorView& codebook, const Stream& stream);

/// sums [codebook_size, codebook_dim] float64 and counts [codebook_size] int64 += the residuals of
/// each code: on the CPU in the order of i, on CUDA in an order that depends on the codes alone.
/// Throws as subtract_code does.
void accumulate_codes(const TensorView& sums, const TensorView& counts, const TensorView& residual,
                      const TensorView& codes, const Stream& stream);

namespace backend {
template <Device D, typename T>
void nearest_code(int32_t* codes, const T* residual, const T* codebook, int64_t n,
                  int64_t codebook_size, int64_t codebook_dim, T* workspace, const Stream& stream);
template <Device D, typename T>
void subtract_code(T* residual, const int32_t* codes, const T* codebook, int64_t n,
                   int64_t codebook_dim, const Stream& stream);
template <Device D, typename T>
void code_distances(T* distances, const T* residual, const int32_t* codes, const T* codebook,
                    int64_t n, int64_t codebook_dim, const Stream& stream);
template <Device D, typename T>
void accumulate_codes(double* sums, int64_t* counts, const T* residual, const int32_t* codes,
                      int64_t n, int64_t codebook_size, int64_t codebook_dim, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
