#include "mirabelle/training/weights_file.h"

#include <map>

#include "mirabelle/core/error.h"
#include "mirabelle/training/checkpoint.h"
#include "tensor_file.h"

namespace mirabelle {

struct CheckpointWeights::File {
  Hdf5File file;
  std::map<std::string, StoredTensor> tensors;
};

CheckpointWeights::CheckpointWeights(const std::filesystem::path& folder) : folder_(folder) {
  std::map<std::string, Shape> shapes;
  for (const std::string& name : checkpoint_tensor_files(folder)) {
    File& file = files_.emplace_back(File{Hdf5File::open(folder / name), {}});
    for (StoredTensor& tensor : read_index(file.file)) {
      const Shape& shape = shapes.emplace(tensor.name, tensor.shape).first->second;
      MIRABELLE_CHECK_DATA(shape == tensor.shape, (folder / name).string(), ": ", tensor.name,
                           " is ", tensor.shape, ", in another file of the checkpoint ", shape);
      file.tensors[tensor.name] = std::move(tensor);
    }
  }
  for (const auto& [name, shape] : shapes) tensors_.push_back({name, shape});
}

CheckpointWeights::~CheckpointWeights() = default;

void CheckpointWeights::read_rows(const std::string& name, int64_t begin,
                                  std::span<float> out) const {
  const auto count = static_cast<int64_t>(out.size());
  int64_t num_found = 0;
  for (const File& file : files_) {
    const auto found = file.tensors.find(name);
    if (found == file.tensors.end() || count == 0) continue;
    const StoredTensor& tensor = found->second;
    const int64_t columns = tensor.shape.inner().num_elements();
    const LogicalPiece piece = {name, tensor.shape, begin, count / columns, 0, columns, 0};
    num_found += read_pieces(file.file, weights_dataset(name), tensor, {&piece, 1}, out.data());
  }
  MIRABELLE_CHECK_DATA(num_found == count, folder_.string(), ": of ", name, " there are ",
                       num_found, " elements in the rows from ", begin, " on, wanted ", count);
}

WeightsFileWriter::WeightsFileWriter(const std::filesystem::path& path,
                                     std::vector<LogicalTensor> tensors)
    : tensors_(std::move(tensors)), file_(Hdf5File::create(path)) {
  std::vector<StoredTensor> stored;
  for (const LogicalTensor& tensor : tensors_) stored.push_back(whole_tensor(tensor));
  write_index(file_, stored);
  begin_tensor();
}

void WeightsFileWriter::begin_tensor() {
  if (current_ == tensors_.size()) return;
  file_.create_dataset(weights_dataset(tensors_[current_].name), tensors_[current_].shape,
                       DType::kFloat32);
  rows_given_ = 0;
}

void WeightsFileWriter::append(std::span<const float> rows) {
  MIRABELLE_CHECK(current_ < tensors_.size(), file_.path().string(),
                  ": more elements than its tensors have");
  const auto& [name, shape] = tensors_[current_];
  const int64_t num_rows = static_cast<int64_t>(rows.size()) / shape.inner().num_elements();
  file_.write_rows(weights_dataset(name), rows_given_,
                   view_of(rows.data(), shape.with_outer(num_rows)));
  rows_given_ += num_rows;
  if (rows_given_ < shape[0]) return;
  ++current_;
  begin_tensor();
}

void WeightsFileWriter::close() {
  MIRABELLE_CHECK(current_ == tensors_.size(), file_.path().string(), ": ", tensors_[current_].name,
                  " was not given");
  file_.close();
}

}  // namespace mirabelle
