#include <future>

#include "mirabelle/convert/tensor_source.h"
#include "mirabelle/training/checkpoint.h"
#include "mirabelle/training/weights_file.h"

namespace mirabelle {
namespace {

class CheckpointSource : public TensorSource {
 public:
  CheckpointSource(const std::filesystem::path& folder, bool verifies) : weights_(folder) {
    if (verifies) {
      verified_ = std::async(std::launch::async, [folder] { verify_checkpoint(folder); }).share();
    }
    for (const LogicalTensor& tensor : weights_.tensors()) {
      tensors_[tensor.name] = {tensor.shape, "float32"};
    }
  }

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  void read_rows(const std::string& name, int64_t begin, std::span<float> out) const override {
    weights_.read_rows(name, begin, out);
  }
  void verify() const override {
    if (verified_.valid()) verified_.get();
  }

 private:
  CheckpointWeights weights_;
  std::shared_future<void> verified_;  // invalid: nothing is compared
  std::map<std::string, TensorInfo> tensors_;
};

}  // namespace

std::unique_ptr<TensorSource> open_checkpoint_tensors(const std::filesystem::path& folder,
                                                      bool verifies) {
  return std::make_unique<CheckpointSource>(folder, verifies);
}

}  // namespace mirabelle
