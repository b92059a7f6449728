#pragma once

#include <vector>

#include "mirabelle/model/parameters.h"

namespace mirabelle::testing {

/// A share's flat storage, filled so that every element says which one of the whole model's logical
/// tensors it is: `scale` times its number, counted from 1 through all tensors. Padding is 0.
inline std::vector<float> logical_values(const ParameterLayout& layout, float scale = 1) {
  std::vector<float> flat(layout.num_elements());
  int64_t tensor_begin = 1, next_begin = 1;
  std::string name;
  for (const LogicalPiece& piece : layout.pieces()) {
    if (piece.name != name) {
      tensor_begin = next_begin;
      next_begin += piece.shape.num_elements();
      name = piece.name;
    }
    const int64_t all_columns = piece.shape.inner().num_elements();
    for (int64_t i = 0; i < piece.num_elements(); ++i) {
      const int64_t row = piece.row_begin + i / piece.num_columns;
      const int64_t column = piece.column_begin + i % piece.num_columns;
      flat[piece.offset + i] =
          scale * static_cast<float>(tensor_begin + row * all_columns + column);
    }
  }
  return flat;
}

}  // namespace mirabelle::testing
