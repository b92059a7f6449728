#include "cuda/attention_cudnn.h"

#include <bit>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/libraries.h"
#include "cuda/sequence_tables.h"
#include "mirabelle/core/cuda_check.h"
#include "mirabelle/core/logging.h"

namespace mirabelle::backend {
namespace {

constexpr int64_t kTokenStep = 128;  // the engines' largest tile
constexpr int64_t kMaxPadding = 4;

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/// So that few plans serve all batches.
AttentionShape rounded(AttentionShape shape) {
  shape.num_sequences =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(shape.num_sequences)));
  shape.max_sequence_tokens = round_up(shape.max_sequence_tokens, kTokenStep);
  return shape;
}

bool is_hopper() {
  int device = 0, major = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;
}

bool supports(const AttentionShape& shape, int64_t num_tokens,
              std::initializer_list<const void*> arrays, const Stream& stream) {
  const int64_t d = shape.head_dim;
  bool supported = !stream.reproducible() && d % 16 == 0 && d >= 32 && d <= 128 &&
                   shape.num_sequences * shape.max_sequence_tokens <= kMaxPadding * num_tokens &&
                   num_tokens * shape.qkv_stride() <= std::numeric_limits<int32_t>::max();
  for (const void* array : arrays) supported &= reinterpret_cast<uintptr_t>(array) % 16 == 0;
  return supported && is_hopper();
}

/// Null if cuDNN refuses.
const CudnnPlan* find_plan(AttentionPass pass, const AttentionShape& shape, const Stream& stream) {
  CudaLibraries& libraries = libraries_of(stream);
  const auto [entry, is_new] = libraries.attention_plans().try_emplace({pass, shape});
  if (!is_new) return entry->second.get();
  try {
    entry->second =
        std::make_unique<CudnnPlan>(attention_graph(pass, shape), libraries.cudnn(stream));
  } catch (const Error& error) {
    spdlog::warn("attention goes without cuDNN for {} sequences of {} tokens, {} heads of {}: {}",
                 shape.num_sequences, shape.max_sequence_tokens, shape.num_heads, shape.head_dim,
                 error.what());
  }
  return entry->second.get();
}

/// Runs a plan on these operands, with all else that it needs, in the stream's workspace.
void run(const CudnnPlan& plan, AttentionPass pass, const AttentionShape& shape,
         const int32_t* sequence_offsets, int64_t num_sequences, float scale,
         std::vector<CudnnPlan::Binding> bindings, const Stream& stream) {
  constexpr int64_t kAlignment = 256;
  const int64_t rows = pass == AttentionPass::kForward
                           ? 0
                           : shape.num_sequences * shape.num_heads * shape.max_sequence_tokens;
  const int64_t table_bytes = round_up((shape.num_sequences + 1) * sizeof(int32_t), kAlignment);
  const int64_t dots_bytes = round_up(rows * sizeof(float), kAlignment);
  const int64_t sum_bytes = round_up(rows * shape.head_dim * sizeof(float), kAlignment);
  CudaLibraries& libraries = libraries_of(stream);
  char* memory = static_cast<char*>(
      libraries.workspace(4 * table_bytes + dots_bytes + sum_bytes + plan.workspace_bytes()));
  const auto take = [&](int64_t bytes) { return std::exchange(memory, memory + bytes); };
  const auto take_table = [&] { return reinterpret_cast<int32_t*>(take(table_bytes)); };

  const SequenceTables tables = {take_table(), take_table(), take_table(), take_table()};
  fill_sequence_tables(tables, shape.num_sequences, sequence_offsets, num_sequences,
                       shape.qkv_stride(), shape.out_stride(), shape.num_heads, stream);
  const float minus_infinity = -std::numeric_limits<float>::infinity(), one = 1;
  bindings.insert(bindings.end(), {{kQueryLengthsId, tables.lengths},
                                   {kKeyLengthsId, tables.lengths},
                                   {kQueryOffsetsId, tables.qkv_offsets},
                                   {kKeyOffsetsId, tables.qkv_offsets},
                                   {kValueOffsetsId, tables.qkv_offsets},
                                   {kOutOffsetsId, tables.out_offsets},
                                   {kLogSumOffsetsId, tables.log_sum_offsets},
                                   {kScaleId, &scale},
                                   {kMinusInfinityId, &minus_infinity}});
  if (pass == AttentionPass::kBackward) {
    char *dots = take(dots_bytes), *grad_query_sum = take(sum_bytes);
    CUDA_CHECK(cudaMemsetAsync(grad_query_sum, 0, sum_bytes, stream.cuda()));
    bindings.insert(bindings.end(),
                    {{kOneId, &one}, {kDotsId, dots}, {kGradQuerySumId, grad_query_sum}});
  }
  plan.run(libraries.cudnn(stream), bindings, memory);
}

}  // namespace

bool attention_cudnn_forward(BFloat16* out, float* log_sum, const BFloat16* qkv,
                             const int32_t* sequence_offsets, int64_t num_tokens,
                             const AttentionShape& batch, float scale, const Stream& stream) {
  const AttentionShape shape = rounded(batch);
  if (!supports(shape, num_tokens, {out, log_sum, qkv}, stream)) return false;
  const CudnnPlan* plan = find_plan(AttentionPass::kForward, shape, stream);
  if (!plan) return false;
  run(*plan, AttentionPass::kForward, shape, sequence_offsets, batch.num_sequences, scale,
      {{kQueryId, qkv},
       {kKeyId, qkv + shape.first_key()},
       {kValueId, qkv + shape.first_value()},
       {kOutId, out},
       {kLogSumId, log_sum}},
      stream);
  return true;
}

bool attention_cudnn_backward(BFloat16* grad_qkv, const BFloat16* grad_out, const BFloat16* out,
                              const float* log_sum, const BFloat16* qkv,
                              const int32_t* sequence_offsets, int64_t num_tokens,
                              const AttentionShape& batch, float scale, const Stream& stream) {
  const AttentionShape shape = rounded(batch);
  if (!supports(shape, num_tokens, {grad_qkv, grad_out, out, log_sum, qkv}, stream)) return false;
  const CudnnPlan* plan = find_plan(AttentionPass::kBackward, shape, stream);
  if (!plan) return false;
  run(*plan, AttentionPass::kBackward, shape, sequence_offsets, batch.num_sequences, scale,
      {{kQueryId, qkv},
       {kKeyId, qkv + shape.first_key()},
       {kValueId, qkv + shape.first_value()},
       {kOutId, out},
       {kLogSumId, log_sum},
       {kGradOutId, grad_out},
       {kGradQueryId, grad_qkv},
       {kGradKeyId, grad_qkv + shape.first_key()},
       {kGradValueId, grad_qkv + shape.first_value()}},
      stream);
  return true;
}

}  // namespace mirabelle::backend
