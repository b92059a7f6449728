#include "mirabelle/kernels/nearest_code.h"

#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

void check_matrix(const char* name, const TensorView& tensor, const char* wanted) {
  MIRABELLE_CHECK(tensor.shape.rank() == 2, name, " has shape ", tensor.shape, ", wanted ", wanted);
}

void check_codes(const TensorView& codes, const TensorView& residual, int64_t codebook_size) {
  check_indices("codes", codes, {residual.shape[0]}, residual);
  if (codes.device != Device::kCpu) return;
  const int32_t* code = codes.as<int32_t>();
  for (int64_t i = 0; i < codes.shape[0]; ++i) {
    MIRABELLE_CHECK(code[i] >= 0 && code[i] < codebook_size, "codes[", i, "] is ", code[i],
                    ", the codebook has ", codebook_size, " rows");
  }
}

}  // namespace

void nearest_code(const TensorView& codes, const TensorView& residual, const TensorView& codebook,
                  const TensorView& workspace, const Stream& stream) {
  check_matrix("residual", residual, "[n, codebook_dim]");
  check_matrix("codebook", codebook, "[codebook_size, codebook_dim]");
  const int64_t n = residual.shape[0], codebook_dim = residual.shape[1];
  const int64_t codebook_size = codebook.shape[0];
  check_indices("codes", codes, {n}, residual);
  check_operand("codebook", codebook, {codebook_size, codebook_dim}, residual);
  check_operand("workspace", workspace, {(n + 1) * codebook_size}, residual);
  MIRABELLE_CHECK(codebook_size > 0 || n == 0, "the codebook is empty, wanted a nearest row for ",
                  n, " residuals");
  dispatch<float>(residual.device, residual.dtype, [&]<Device D, typename T>() {
    backend::nearest_code<D, T>(codes.as<int32_t>(), residual.as<T>(), codebook.as<T>(), n,
                                codebook_size, codebook_dim, workspace.as<T>(), stream);
  });
}

void subtract_code(const TensorView& residual, const TensorView& codes, const TensorView& codebook,
                   const Stream& stream) {
  check_matrix("residual", residual, "[n, codebook_dim]");
  check_matrix("codebook", codebook, "[codebook_size, codebook_dim]");
  check_operand("codebook", codebook, {codebook.shape[0], residual.shape[1]}, residual);
  check_codes(codes, residual, codebook.shape[0]);
  dispatch<float>(residual.device, residual.dtype, [&]<Device D, typename T>() {
    backend::subtract_code<D, T>(residual.as<T>(), codes.as<int32_t>(), codebook.as<T>(),
                                 residual.shape[0], residual.shape[1], stream);
  });
}

void code_distances(const TensorView& distances, const TensorView& residual,
                    const TensorView& codes, const TensorView& codebook, const Stream& stream) {
  check_matrix("residual", residual, "[n, codebook_dim]");
  check_matrix("codebook", codebook, "[codebook_size, codebook_dim]");
  check_operand("distances", distances, {residual.shape[0]}, residual);
  check_operand("codebook", codebook, {codebook.shape[0], residual.shape[1]}, residual);
  check_codes(codes, residual, codebook.shape[0]);
  dispatch<float>(residual.device, residual.dtype, [&]<Device D, typename T>() {
    backend::code_distances<D, T>(distances.as<T>(), residual.as<T>(), codes.as<int32_t>(),
                                  codebook.as<T>(), residual.shape[0], residual.shape[1], stream);
  });
}

void accumulate_codes(const TensorView& sums, const TensorView& counts, const TensorView& residual,
                      const TensorView& codes, const Stream& stream) {
  check_matrix("residual", residual, "[n, codebook_dim]");
  check_matrix("sums", sums, "[codebook_size, codebook_dim]");
  const int64_t codebook_size = sums.shape[0];
  TensorView like = residual;
  like.dtype = DType::kFloat64;
  check_operand("sums", sums, {codebook_size, residual.shape[1]}, like);
  like.dtype = DType::kInt64;
  check_operand("counts", counts, {codebook_size}, like);
  check_codes(codes, residual, codebook_size);
  dispatch<float>(residual.device, residual.dtype, [&]<Device D, typename T>() {
    backend::accumulate_codes<D, T>(sums.as<double>(), counts.as<int64_t>(), residual.as<T>(),
                                    codes.as<int32_t>(), residual.shape[0], codebook_size,
                                    residual.shape[1], stream);
  });
}

}  // namespace mirabelle
