#pragma once

#include <cstdint>

#include "cuda/attention_cudnn_graph.h"
#include "mirabelle/core/bfloat16.h"
#include "mirabelle/core/stream.h"

namespace mirabelle::backend {

// Causal attention of bfloat16 by cuDNN. The functions return false, and do nothing, unless
//  - the stream need not be reproducible: the backward pass adds with atomics;
//  - the GPU is a Hopper (for others the graphs would have to be others), and head_dim a multiple
//  of
//    16 from 32 to 128;
//  - num_sequences, rounded up to a power of two, times max_sequence_tokens, rounded up to a
//    multiple of 128, is at most 4 num_tokens. The extents of a graph are fixed, and what is
//    padding costs empty blocks and, in the backward pass, memory;
//  - cuDNN takes the graph. That it does not is logged once, with its reason.
// Plans stay with the stream, and so does the workspace: in the backward pass about 4 head_dim
// bytes per padded token and query head, and as much again where query heads share a key head.
// log_sum is what our own kernels write, so either backward pass can follow either forward pass.

/// `shape` as the batch is, before rounding.
bool attention_cudnn_forward(BFloat16* out, float* log_sum, const BFloat16* qkv,
                             const int32_t* sequence_offsets, int64_t num_tokens,
                             const AttentionShape& shape, float scale, const Stream& stream);

bool attention_cudnn_backward(BFloat16* grad_qkv, const BFloat16* grad_out, const BFloat16* out,
                              const float* log_sum, const BFloat16* qkv,
                              const int32_t* sequence_offsets, int64_t num_tokens,
                              const AttentionShape& shape, float scale, const Stream& stream);

}  // namespace mirabelle::backend
