#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/model/parameters.h"

namespace mirabelle {

/// The weights of a checkpoint of any layout (see checkpoint.h), tensor by tensor, a few rows at a
/// time. Nothing is compared with checksums. Errors are kData Errors that name the file.
class CheckpointWeights {
 public:
  explicit CheckpointWeights(const std::filesystem::path& folder);
  ~CheckpointWeights();
  CheckpointWeights(const CheckpointWeights&) = delete;
  CheckpointWeights& operator=(const CheckpointWeights&) = delete;

  const std::vector<LogicalTensor>& tensors() const { return tensors_; }  ///< by name
  /// out = the rows of a tensor from `begin` on, as many as fit. Throws if an element is missing.
  void read_rows(const std::string& name, int64_t begin, std::span<float> out) const;

 private:
  struct File;
  std::filesystem::path folder_;
  std::vector<File> files_;
  std::vector<LogicalTensor> tensors_;
};

/// Writes a checkpoint's tensor file that holds only weights, whole tensors, whose elements are
/// given one tensor after the other.
class WeightsFileWriter {
 public:
  WeightsFileWriter(const std::filesystem::path& path, std::vector<LogicalTensor> tensors);

  /// The next rows of the tensor that is not yet complete.
  void append(std::span<const float> rows);
  /// Throws unless all elements of all tensors were given and the disk took them.
  void close();

 private:
  void begin_tensor();

  std::vector<LogicalTensor> tensors_;
  Hdf5File file_;
  size_t current_ = 0;      // the tensor that grows,
  int64_t rows_given_ = 0;  // by so many rows so far
};

}  // namespace mirabelle
