#include "mirabelle/kernels/codebook_training.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

void check_counts(const TensorView& counts, int64_t codebook_size, const TensorView& like) {
  MIRABELLE_CHECK(counts.shape == Shape{codebook_size} && counts.dtype == DType::kInt64,
                  "counts are ", to_string(counts.dtype), " ", counts.shape, ", wanted int64 [",
                  codebook_size, "]");
  MIRABELLE_CHECK(counts.device == like.device, "counts are on ", to_string(counts.device),
                  ", wanted ", to_string(like.device));
}

}  // namespace

void sum_kept_codes(const TensorView& out, const TensorView& residuals, const TensorView& num_kept,
                    const Stream& stream) {
  MIRABELLE_CHECK(residuals.shape.rank() == 3 && residuals.shape[0] >= 1, "residuals have shape ",
                  residuals.shape, ", wanted [num_levels + 1, n, codebook_dim]");
  const int64_t n = residuals.shape[1], codebook_dim = residuals.shape[2];
  check_operand("residuals", residuals, residuals.shape, residuals);
  check_operand("out", out, {n, codebook_dim}, residuals);
  check_indices("num_kept", num_kept, {n}, residuals);
  dispatch<float>(residuals.device, residuals.dtype, [&]<Device D, typename T>() {
    backend::sum_kept_codes<D, T>(out.as<T>(), residuals.as<T>(), num_kept.as<int32_t>(),
                                  residuals.shape[0] - 1, n, codebook_dim, stream);
  });
}

void rotation_backward(const TensorView& grad_z, const TensorView& grad_quantized,
                       const TensorView& z, const TensorView& quantized, const Stream& stream) {
  MIRABELLE_CHECK(z.shape.rank() == 2, "z has shape ", z.shape, ", wanted [n, codebook_dim]");
  check_operand("z", z, z.shape, z);
  check_operand("quantized", quantized, z.shape, z);
  check_operand("grad_z", grad_z, z.shape, z);
  check_operand("grad_quantized", grad_quantized, z.shape, z);
  dispatch<float>(z.device, z.dtype, [&]<Device D, typename T>() {
    backend::rotation_backward<D, T>(grad_z.as<T>(), grad_quantized.as<T>(), z.as<T>(),
                                     quantized.as<T>(), z.shape[0], z.shape[1], stream);
  });
}

void count_codes(const TensorView& counts, const TensorView& codes, const Stream& stream) {
  MIRABELLE_CHECK(codes.shape.rank() == 1, "codes have shape ", codes.shape, ", wanted [n]");
  check_indices("codes", codes, codes.shape, codes);
  MIRABELLE_CHECK(counts.shape.rank() == 1, "counts have shape ", counts.shape,
                  ", wanted [codebook_size]");
  check_counts(counts, counts.shape[0], codes);
  dispatch<float>(codes.device, DType::kFloat32, [&]<Device D, typename>() {  // has no floats
    backend::count_codes<D>(counts.as<int64_t>(), codes.as<int32_t>(), codes.shape[0],
                            counts.shape[0], stream);
  });
}

void ema_codebook_update(const TensorView& codebook, const TensorView& ema_counts,
                         const TensorView& grad, const TensorView& counts, double decay,
                         const Stream& stream) {
  MIRABELLE_CHECK(codebook.shape.rank() == 2, "codebook has shape ", codebook.shape,
                  ", wanted [codebook_size, codebook_dim]");
  const int64_t codebook_size = codebook.shape[0];
  check_operand("codebook", codebook, codebook.shape, codebook);
  check_operand("ema_counts", ema_counts, {codebook_size}, codebook);
  check_operand("grad", grad, codebook.shape, codebook);
  check_counts(counts, codebook_size, codebook);
  MIRABELLE_CHECK(decay >= 0 && decay < 1, "decay must be from 0 to below 1, not ", decay);
  dispatch<float>(codebook.device, codebook.dtype, [&]<Device D, typename T>() {
    backend::ema_codebook_update<D, T>(codebook.as<T>(), ema_counts.as<T>(), grad.as<T>(),
                                       counts.as<int64_t>(), codebook_size, codebook.shape[1],
                                       decay, stream);
  });
}

}  // namespace mirabelle
