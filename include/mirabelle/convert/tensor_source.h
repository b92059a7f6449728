#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// A tensor of a model on disk. Without axes it is one number.
struct TensorInfo {
  Shape shape;
  std::string dtype;  ///< float32, bfloat16, float16, or what else the file calls it

  int64_t num_rows() const { return shape.rank() == 0 ? 1 : shape[0]; }
  int64_t row_size() const { return shape.rank() == 0 ? 1 : shape.inner().num_elements(); }
  bool is_number() const { return dtype == "float32" || dtype == "bfloat16" || dtype == "float16"; }
};

/// The tensors of a model, by the names of Hugging Face's Llama and Qwen, read a few rows at a time
/// so that no memory is needed for all of it.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual const std::map<std::string, TensorInfo>& tensors() const = 0;
  /// out = the rows from `begin` on, as many as fit, in float32. Throws a kData Error if the tensor
  /// is missing or holds no float32, bfloat16 or float16 numbers.
  virtual void read_rows(const std::string& name, int64_t begin, std::span<float> out) const = 0;
  /// To be called before what was read is relied on: waits until all files were compared with their
  /// checksums, if they have such. Throws a kData Error that names the first that differs.
  virtual void verify() const {}

  /// The tensor of that name, or a kData Error.
  const TensorInfo& info(const std::string& name) const;
};

/// A folder in the format of Hugging Face: model.safetensors, or model.safetensors.index.json with
/// the files that it names; or one .safetensors file. Throws a kData Error if that is not so.
std::unique_ptr<TensorSource> open_hugging_face_tensors(const std::filesystem::path& path);

/// The weights of a checkpoint of any layout. If it `verifies`, files are being compared with their
/// checksums in the background.
std::unique_ptr<TensorSource> open_checkpoint_tensors(const std::filesystem::path& folder,
                                                      bool verifies = true);

/// Calls body(begin, rows): all rows of a tensor, some megabytes at a time.
template <typename Body>
void for_each_slab(const TensorSource& source, const std::string& name, Body&& body) {
  constexpr int64_t kSlabElements = int64_t{4} << 20;
  const TensorInfo& tensor = source.info(name);
  const int64_t row_size = tensor.row_size();
  const int64_t step = std::max<int64_t>(1, kSlabElements / std::max<int64_t>(row_size, 1));
  std::vector<float> rows;
  for (int64_t begin = 0; begin < tensor.num_rows(); begin += step) {
    rows.resize(std::min(step, tensor.num_rows() - begin) * row_size);
    source.read_rows(name, begin, rows);
    body(begin, std::span<const float>(rows));
  }
}

}  // namespace mirabelle
