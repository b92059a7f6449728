#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// From products of a batch's rows to the logits of InfoNCE (van den Oord et al. 2018), whose
/// targets are the rows' partners: divides by the temperature, and takes away the columns that a
/// row is not told apart from. float32, and float64 on the CPU.
///
///   logits[i][j] = -infinity            if j = first_row + i or partners[j] < 0
///                  logits[i][j] / temperature    otherwise
///
///   logits    [num_rows, num_columns]: rows [first_row, first_row + num_rows) of the batch by all
///             of them, in place
///   partners  [num_columns] int32: of each row of the batch the row of its partner; negative: it
///             has none
void contrastive_logits(const TensorView& logits, const TensorView& partners, int64_t first_row,
                        double temperature, const Stream& stream);

namespace backend {
template <Device D, typename T>
void contrastive_logits(T* logits, const int32_t* partners, int64_t num_rows, int64_t num_columns,
                        int64_t first_row, double temperature, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
