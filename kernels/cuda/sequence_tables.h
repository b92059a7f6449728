#pragma once

#include <cstdint>

#include "mirabelle/core/stream.h"

namespace mirabelle::backend {

/// What cuDNN wants to know of packed sequences, on the device.
struct SequenceTables {
  int32_t* lengths;          ///< [size] tokens
  int32_t* qkv_offsets;      ///< [size + 1] where they begin, in elements
  int32_t* out_offsets;      ///< [size + 1]
  int32_t* log_sum_offsets;  ///< [size + 1]
};

/// From offsets [num_sequences + 1] in tokens and the elements per token; sequences from
/// num_sequences on are empty.
void fill_sequence_tables(const SequenceTables& tables, int64_t size, const int32_t* offsets,
                          int64_t num_sequences, int64_t qkv_stride, int64_t out_stride,
                          int64_t num_heads, const Stream& stream);

}  // namespace mirabelle::backend
