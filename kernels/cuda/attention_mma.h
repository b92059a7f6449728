#pragma once

#include <cstdint>
#include <initializer_list>

#include "cuda/attention_layout.cuh"
#include "mirabelle/core/bfloat16.h"
#include "mirabelle/core/stream.h"

namespace mirabelle::backend {

// Attention of bfloat16 on tensor cores, in the manner of FlashAttention-2 (Dao 2023). Every sum
// has a fixed order; there are no atomics.

/// Whether there are kernels for this head size and these arrays (aligned to 16 bytes).
bool attention_mma_supports(const Heads& heads, std::initializer_list<const void*> arrays);

void attention_mma_forward(BFloat16* out, float* log_sum, const BFloat16* qkv,
                           const int32_t* sequence_offsets, int64_t num_tokens,
                           int64_t num_sequences, const Heads& heads, float scale,
                           const Stream& stream);

/// dots [num_tokens, num_heads]: grad_out . out.
void attention_mma_backward(BFloat16* grad_qkv, const BFloat16* grad_out, const float* log_sum,
                            const float* dots, const BFloat16* qkv, const int32_t* sequence_offsets,
                            int64_t num_tokens, int64_t num_sequences, const Heads& heads,
                            float scale, const Stream& stream);

/// Histories that a few blocks would have to stream alone are split over several (flash-decoding);
/// how many depends on the sizes alone.
void beam_attention_mma(BFloat16* out, const BFloat16* qkv, const BFloat16* prefix_qkv,
                        const int32_t* prefix_offsets, const int32_t* beam_offsets,
                        const BFloat16* suffix_kv, int64_t num_users, int64_t num_prefix_tokens,
                        int64_t num_beams, int64_t suffix_length, const Heads& heads, float scale,
                        const Stream& stream);

}  // namespace mirabelle::backend
