#include "mirabelle/convert/model_files.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "mirabelle/convert/safetensors.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"
#include "mirabelle/training/weights_file.h"

namespace mirabelle {
namespace fs = std::filesystem;
namespace {

int64_t num_elements(std::span<const LogicalTensor> tensors) {
  int64_t total = 0;
  for (const LogicalTensor& tensor : tensors) total += tensor.shape.num_elements();
  return total;
}

/// Appends all rows of the tensors to a writer.
template <typename Writer>
void copy_tensors(Writer& writer, const TensorSource& source,
                  std::span<const LogicalTensor> tensors,
                  const std::function<void(int64_t done)>& show) {
  int64_t done = 0;
  for (const LogicalTensor& tensor : tensors) {
    for_each_slab(source, tensor.name, [&](int64_t, std::span<const float> rows) {
      writer.append(rows);
      done += static_cast<int64_t>(rows.size());
      show(done);
    });
  }
}

/// Tensors that share a file: as many as fit, at least one.
std::vector<std::span<const LogicalTensor>> divide(const std::vector<LogicalTensor>& tensors,
                                                   int64_t max_file_elements) {
  std::vector<std::span<const LogicalTensor>> files;
  const std::span<const LogicalTensor> all = tensors;
  for (size_t begin = 0, end; begin < all.size(); begin = end) {
    int64_t elements = all[begin].shape.num_elements();
    for (end = begin + 1; end < all.size(); ++end) {
      elements += all[end].shape.num_elements();
      if (elements > max_file_elements) break;
    }
    files.push_back(all.subspan(begin, end - begin));
  }
  return files;
}

std::string file_name(size_t index, size_t num_files) {
  if (num_files == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, num_files);
  return name;
}

}  // namespace

void check_tensors(const TensorSource& source, const std::vector<LogicalTensor>& wanted,
                   const std::string& where) {
  std::set<std::string> names = {"lm_head.weight"};
  for (const LogicalTensor& tensor : wanted) {
    names.insert(tensor.name);
    const auto found = source.tensors().find(tensor.name);
    MIRABELLE_CHECK_DATA(found != source.tensors().end(), where, ": lacks the tensor ",
                         tensor.name);
    const TensorInfo& info = found->second;
    MIRABELLE_CHECK_DATA(info.shape == tensor.shape, where, ": ", tensor.name, " is ", info.shape,
                         ", wanted ", tensor.shape, " by the configuration");
    MIRABELLE_CHECK_DATA(info.is_number(), where, ": ", tensor.name, " is of dtype ", info.dtype,
                         ", wanted float32, float16 or bfloat16");
  }
  for (const auto& [name, info] : source.tensors()) {
    // old files hold the rotary frequencies, which follow from the configuration
    const bool is_known = names.contains(name) || name.ends_with("rotary_emb.inv_freq");
    MIRABELLE_CHECK_DATA(is_known, where, ": has the tensor ", shown(name),
                         ", which this family of models does not");
  }
}

void write_safetensors_files(const fs::path& folder, const TensorSource& source,
                             const std::vector<LogicalTensor>& tensors, DType dtype,
                             int64_t max_file_bytes, const ShowDone& show) {
  const int64_t total = num_elements(tensors);
  const auto files = divide(tensors, max_file_bytes / size_in_bytes(dtype));
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  int64_t done = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string name = file_name(i, files.size());
    SafetensorsWriter writer(folder / name, dtype, std::vector(files[i].begin(), files[i].end()));
    copy_tensors(writer, source, files[i], [&](int64_t in_file) { show(done + in_file, total); });
    writer.close();
    done += num_elements(files[i]);
    for (const LogicalTensor& tensor : files[i]) weight_map[tensor.name] = name;
  }
  if (files.size() == 1) return;
  const nlohmann::ordered_json index = {
      {"metadata", {{"total_parameters", total}, {"total_size", total * size_in_bytes(dtype)}}},
      {"weight_map", weight_map}};
  write_text_file(folder / "model.safetensors.index.json", index.dump(2) + "\n");
}

std::string write_checkpoint_file(const fs::path& folder, const TensorSource& source,
                                  const std::vector<LogicalTensor>& tensors, const ShowDone& show) {
  const std::string name = "tensors-00001-of-00001.h5";
  const int64_t total = num_elements(tensors);
  WeightsFileWriter writer(folder / name, tensors);
  copy_tensors(writer, source, tensors, [&](int64_t done) { show(done, total); });
  writer.close();
  return name;
}

void read_share(const TensorView& flat, const ParameterLayout& layout, const TensorSource& source) {
  float* const values = flat.as<float>();
  std::vector<float> rows;
  for (const LogicalPiece& piece : layout.pieces()) {
    const int64_t width = piece.shape.inner().num_elements();
    const int64_t step = std::max<int64_t>(1, (int64_t{4} << 20) / width);
    for (int64_t begin = 0; begin < piece.num_rows; begin += step) {
      const int64_t count = std::min(step, piece.num_rows - begin);
      rows.resize(count * width);
      source.read_rows(piece.name, piece.row_begin + begin, rows);
      for (int64_t row = 0; row < count; ++row) {
        std::copy_n(rows.data() + row * width + piece.column_begin, piece.num_columns,
                    values + piece.offset + (begin + row) * piece.num_columns);
      }
    }
  }
}

}  // namespace mirabelle
