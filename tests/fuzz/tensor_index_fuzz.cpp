// The index of a checkpoint's tensor file.

#include "../../src/training/tensor_file.h"
#include "fuzz.h"

namespace {

/// What reading relies on.
void check(const mirabelle::StoredTensor& tensor) {
  const int64_t elements = tensor.shape.num_elements();
  if (elements <= 0) std::abort();
  int64_t stored = 0;
  for (const mirabelle::TensorRegion& region : tensor.regions) {
    stored += region.elements.size();
    if (region.rows.begin < 0 || region.columns.begin < 0 || region.elements.begin < 0 ||
        region.rows.end > tensor.shape[0] || region.columns.size() <= 0 ||
        region.elements.end > region.rows.size() * region.columns.size()) {
      std::abort();
    }
  }
  if (stored > elements) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mirabelle::fuzz::accepts([&] {
    const auto text = mirabelle::fuzz::text_of(data, size);
    for (const auto& tensor : mirabelle::parse_tensor_index(text, "index")) check(tensor);
  });
  return 0;
}
