#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/model/parameters.h"
#include "mirabelle/training/checkpoint.h"

namespace mirabelle {

/// A part of a logical tensor: of the rectangle of these rows and columns, in row-major order,
/// these elements. A tensor of one axis has one column.
struct TensorRegion {
  FlatRange rows, columns, elements;
};

/// What a file holds of a logical tensor: regions, one after the other.
struct StoredTensor {
  std::string name;
  Shape shape;  ///< of the whole tensor
  std::vector<TensorRegion> regions;
};

/// What a rank writes, and where that stands in the memory of the ranges that it owns.
struct OwnedTensor {
  StoredTensor stored;
  std::vector<FlatRange> sources;  ///< in the order of the file
};

/// The tensors of which the owned ranges hold something primary. What follows each other in the
/// order of a tensor's elements is one region.
std::vector<OwnedTensor> owned_tensors(const ParameterLayout& layout,
                                       std::span<const FlatRange> owned);

/// "exp_avg/NAME" of the first tensor that has an infinity or NaN in its part; empty if none has.
std::string find_not_finite(const std::vector<OwnedTensor>& tensors,
                            const CheckpointTensors& values);

/// Writes weights/NAME, exp_avg/NAME and exp_avg_sq/NAME of every tensor, and the index. A tensor
/// that is one whole region keeps its shape; the others have one axis. `values`: the memory of the
/// owned ranges.
void write_tensor_file(const std::filesystem::path& path, const std::vector<OwnedTensor>& tensors,
                       const CheckpointTensors& values);

/// A tensor that a file holds all of.
StoredTensor whole_tensor(const LogicalTensor& tensor);
/// The dataset of a tensor's weights.
std::string weights_dataset(const std::string& name);
void write_index(Hdf5File& file, const std::vector<StoredTensor>& tensors);
/// The tensors that a file's index lists, with regions that lie in their shapes. kData Errors begin
/// with `where`.
std::vector<StoredTensor> parse_tensor_index(std::string_view text, const std::string& where);
std::vector<StoredTensor> read_index(const Hdf5File& file);

/// Copies what a file has of a logical tensor's pieces to their places in `flat`, from the dataset
/// of that name; returns how many elements that were.
int64_t read_pieces(const Hdf5File& file, const std::string& dataset, const StoredTensor& tensor,
                    std::span<const LogicalPiece> pieces, float* flat);

/// Fills a rank's share (of the views that are not absent) from files that together hold all of the
/// model.
void read_tensor_files(const std::filesystem::path& folder, const std::vector<std::string>& files,
                       const ParameterLayout& layout, const CheckpointTensors& tensors);

}  // namespace mirabelle
