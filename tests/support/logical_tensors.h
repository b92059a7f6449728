#pragma once

#include <map>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/model/parameters.h"

namespace mirabelle::testing {

/// Elements of whole logical tensors, by name.
using LogicalTensors = std::map<std::string, std::vector<double>>;

/// Puts the shares of all ranks together: every rank of the group gets all tensors. Copies that are
/// not primary are left out.
template <typename T>
LogicalTensors assemble(const ParameterLayout& layout, const T* flat, const Communicator& group) {
  LogicalTensors tensors;
  for (const LogicalPiece& piece : layout.pieces()) {
    std::vector<double>& tensor = tensors[piece.name];
    tensor.resize(piece.shape.num_elements());
    const int64_t columns = piece.shape.rank() == 1 ? 1 : piece.shape[1];
    for (int64_t i = 0; piece.is_primary && i < piece.num_elements(); ++i) {
      const int64_t row = piece.row_begin + i / piece.num_columns;
      const int64_t column = piece.column_begin + i % piece.num_columns;
      tensor[row * columns + column] = static_cast<double>(flat[piece.offset + i]);
    }
  }
  for (auto& [name, tensor] : tensors) {
    group.all_reduce(view_of(tensor), ReduceOp::kSum, Stream());
  }
  return tensors;
}

}  // namespace mirabelle::testing
