#include <nlohmann/json.hpp>

#include "mirabelle/convert/safetensors.h"
#include "mirabelle/convert/tensor_source.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"

namespace mirabelle {
namespace fs = std::filesystem;

const TensorInfo& TensorSource::info(const std::string& name) const {
  const auto found = tensors().find(name);
  MIRABELLE_CHECK_DATA(found != tensors().end(), "there is no tensor ", shown(name));
  return found->second;
}

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string dtype_name(const std::string& dtype) {
  return dtype == "F32"    ? "float32"
         : dtype == "BF16" ? "bfloat16"
         : dtype == "F16"  ? "float16"
                           : dtype;
}

class HuggingFaceSource : public TensorSource {
 public:
  explicit HuggingFaceSource(const fs::path& path) {
    if (!fs::is_directory(path)) {
      add_file(path);
    } else if (fs::exists(path / kIndex)) {
      add_indexed_files(path);
    } else {
      MIRABELLE_CHECK_DATA(fs::exists(path / kSingleFile), path.string(), ": holds neither ",
                           kSingleFile, " nor ", kIndex);
      add_file(path / kSingleFile);
    }
  }

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }

  void read_rows(const std::string& name, int64_t begin, std::span<float> out) const override {
    places_.at(name)->read(name, begin * info(name).row_size(), out);
  }

 private:
  const SafetensorsReader& add_file(const fs::path& path) {
    const auto& file = files_.emplace_back(std::make_unique<SafetensorsReader>(path));
    for (const auto& [name, tensor] : file->tensors()) {
      const bool is_new = places_.emplace(name, file.get()).second;
      MIRABELLE_CHECK_DATA(is_new, path.string(), ": tensor ", shown(name), " is also in ",
                           places_.at(name)->path().filename().string());
      tensors_[name] = {tensor.shape, dtype_name(tensor.dtype)};
    }
    return *file;
  }

  void add_indexed_files(const fs::path& folder) {
    const std::string where = (folder / kIndex).string();
    const auto index = parse_json(read_text_file(folder / kIndex), where);
    const auto weight_map = json_field<nlohmann::json>(index, "weight_map", where);
    MIRABELLE_CHECK_DATA(weight_map.is_object(), where, ": weight_map is no object");
    std::map<std::string, const SafetensorsReader*> files;
    for (const auto& [name, value] : weight_map.items()) {
      const auto file = json_value<std::string>(value, where + ": weight_map: " + shown(name));
      // a plain name: an index must not lead out of its folder
      MIRABELLE_CHECK_DATA(file.ends_with(".safetensors") && file.find('/') == std::string::npos &&
                               file.find('\0') == std::string::npos,
                           where, ": tensor ", shown(name), " is in ", shown(file),
                           ", wanted a .safetensors file of the same folder");
      if (!files.contains(file)) files[file] = &add_file(folder / file);
      MIRABELLE_CHECK_DATA(files[file]->tensors().contains(name), where, ": tensor ", shown(name),
                           " is not in ", file);
    }
    MIRABELLE_CHECK_DATA(weight_map.size() == tensors_.size(), where, ": names ", weight_map.size(),
                         " tensors, its files hold ", tensors_.size());
  }

  std::vector<std::unique_ptr<SafetensorsReader>> files_;
  std::map<std::string, const SafetensorsReader*> places_;
  std::map<std::string, TensorInfo> tensors_;
};

}  // namespace

std::unique_ptr<TensorSource> open_hugging_face_tensors(const fs::path& path) {
  return std::make_unique<HuggingFaceSource>(path);
}

}  // namespace mirabelle
