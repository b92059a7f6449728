#include "mirabelle/kernels/matmul.h"

#include <algorithm>

#include "cuda/cublas_check.h"
#include "cuda/libraries.h"
#include "mirabelle/core/cuda_check.h"
#include "mirabelle/core/dtype.h"

namespace mirabelle::backend {
namespace {

// What Hopper's algorithms ask for.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

template <typename T>
constexpr cudaDataType_t kCudaType = std::is_same_v<T, BFloat16> ? CUDA_R_16BF : CUDA_R_32F;

void destroy_desc(cublasLtMatmulDesc_t desc) { cublasLtMatmulDescDestroy(desc); }
void destroy_layout(cublasLtMatrixLayout_t layout) { cublasLtMatrixLayoutDestroy(layout); }
void destroy_preference(cublasLtMatmulPreference_t p) { cublasLtMatmulPreferenceDestroy(p); }
using Desc = UniqueHandle<cublasLtMatmulDesc_t, destroy_desc>;
using Layout = UniqueHandle<cublasLtMatrixLayout_t, destroy_layout>;
using Preference = UniqueHandle<cublasLtMatmulPreference_t, destroy_preference>;

/// `count` row-major [rows, columns] matrices, one after the other, which are column-major
/// [columns, rows] ones to cuBLASLt.
Layout layout_of(cudaDataType_t type, int64_t count, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t created = nullptr;
  CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&created, type, columns, rows, columns));
  Layout layout(created);
  if (count == 1) return layout;
  const auto set = [&](cublasLtMatrixLayoutAttribute_t attribute, auto value) {
    CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout.get(), attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(count));
  set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, rows * columns);
  return layout;
}

template <typename Value>
void set(const Desc& desc, cublasLtMatmulDescAttributes_t attribute, Value value) {
  CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc.get(), attribute, &value, sizeof(value)));
}

/// The largest power of two that divides the addresses of these matrices, up to 16; some algorithms
/// want 16.
int alignment_of(const void* first, int64_t count, int64_t matrix_bytes) {
  const auto address = reinterpret_cast<uintptr_t>(first);
  int alignment = 16;
  while (address % alignment != 0 || (count > 1 && matrix_bytes % alignment != 0)) alignment /= 2;
  return alignment;
}

cublasLtMatmulAlgo_t choose_algorithm(cublasLtHandle_t handle, const Desc& desc, const Layout& a,
                                      const Layout& b, const Layout& out, uint32_t alignment) {
  cublasLtMatmulPreference_t created = nullptr;
  CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&created));
  const Preference preference(created);
  auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    CUBLAS_CHECK(
        cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  // Split sums only through the workspace, in a fixed order: the same bits every time.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    prefer(attribute, alignment);
  }
  cublasLtMatmulHeuristicResult_t result;
  int count = 0;
  CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(handle, desc.get(), a.get(), b.get(), out.get(),
                                              out.get(), preference.get(), 1, &result, &count));
  MIRABELLE_CHECK(count > 0, "cuBLASLt has no algorithm for a matrix product");
  return result.algo;
}

}  // namespace

// Row-major out = op(a) op(b) is column-major out^T = op(b)^T op(a)^T: the same memory with the
// operands exchanged.
template <Device D, typename T, typename Out>
void matmul(Out* out, const T* a, bool transpose_a, const T* b, bool transpose_b, bool accumulate,
            int64_t count, int64_t m, int64_t n, int64_t k, const Stream& stream) {
  if (count == 0 || m == 0 || n == 0) return;
  if (k == 0) {
    if (!accumulate)
      CUDA_CHECK(cudaMemsetAsync(out, 0, count * m * n * sizeof(Out), stream.cuda()));
    return;
  }
  cublasLtMatmulDesc_t created = nullptr;
  CUBLAS_CHECK(cublasLtMatmulDescCreate(&created, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const Desc desc(created);
  set(desc, CUBLASLT_MATMUL_DESC_TRANSA, transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(desc, CUBLASLT_MATMUL_DESC_TRANSB, transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  const Layout layout_b = layout_of(kCudaType<T>, count, transpose_b ? n : k, transpose_b ? k : n);
  const Layout layout_a = layout_of(kCudaType<T>, count, transpose_a ? k : m, transpose_a ? m : k);
  const Layout layout_out = layout_of(kCudaType<Out>, count, m, n);

  CudaLibraries& libraries = libraries_of(stream);
  const int alignment = std::min({alignment_of(a, count, m * k * sizeof(T)),
                                  alignment_of(b, count, k * n * sizeof(T)),
                                  alignment_of(out, count, m * n * sizeof(Out))});
  const CudaLibraries::MatmulKey key{
      kCudaType<T>, kCudaType<Out>, transpose_a, transpose_b, accumulate, count, m, n, k,
      alignment};
  auto found = libraries.matmul_algorithms.find(key);
  if (found == libraries.matmul_algorithms.end()) {
    const auto chosen = choose_algorithm(libraries.cublaslt(), desc, layout_b, layout_a, layout_out,
                                         static_cast<uint32_t>(alignment));
    found = libraries.matmul_algorithms.emplace(key, chosen).first;
  }
  const float one = 1, beta = accumulate ? 1 : 0;
  CUBLAS_CHECK(cublasLtMatmul(libraries.cublaslt(), desc.get(), &one, b, layout_b.get(), a,
                              layout_a.get(), &beta, out, layout_out.get(), out, layout_out.get(),
                              &found->second, libraries.workspace(kWorkspaceBytes), kWorkspaceBytes,
                              stream.cuda()));
}

#define INSTANTIATE(T, Out)                                                                        \
  template void matmul<Device::kCuda, T, Out>(Out*, const T*, bool, const T*, bool, bool, int64_t, \
                                              int64_t, int64_t, int64_t, const Stream&);
INSTANTIATE(float, float)
INSTANTIATE(BFloat16, BFloat16)
INSTANTIATE(BFloat16, float)
#undef INSTANTIATE

}  // namespace mirabelle::backend
