#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// out [num_rows, num_columns] = the shards of x [num_shards, num_rows, shard_columns] side by
/// side. Columns beyond num_columns, which pad the last shards, are left out: num_shards *
/// shard_columns is at least num_columns. One dtype. Throws Error if shapes, dtypes or devices
/// disagree.
void concatenate_columns(const TensorView& out, const TensorView& x, const Stream& stream);

namespace backend {
template <Device D, typename T>
void concatenate_columns(T* out, const T* x, int64_t num_rows, int64_t num_columns,
                         int64_t shard_columns, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
