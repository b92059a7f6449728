#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "mirabelle/convert/tensor_source.h"
#include "mirabelle/model/parameters.h"

namespace mirabelle {

/// Throws a kData Error unless `source`, which `where` names, holds exactly these tensors in these
/// shapes, as numbers. A head that is tied to the embedding may be there too.
void check_tensors(const TensorSource& source, const std::vector<LogicalTensor>& wanted,
                   const std::string& where);

/// Told now and then how many elements of all are written.
using ShowDone = std::function<void(int64_t done, int64_t total)>;

/// Writes model.safetensors into a folder, or, where a file would have more than max_file_bytes,
/// several with an index; no tensor is cut. Memory: some megabytes.
void write_safetensors_files(const std::filesystem::path& folder, const TensorSource& source,
                             const std::vector<LogicalTensor>& tensors, DType dtype,
                             int64_t max_file_bytes, const ShowDone& show);

/// Writes one tensor file of a checkpoint, float32, and returns its name.
std::string write_checkpoint_file(const std::filesystem::path& folder, const TensorSource& source,
                                  const std::vector<LogicalTensor>& tensors, const ShowDone& show);

/// Fills a rank's share of a model, float32 in the flat order of `layout`; what pads it stays as it
/// is.
void read_share(const TensorView& flat, const ParameterLayout& layout, const TensorSource& source);

}  // namespace mirabelle
