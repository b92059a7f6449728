// A .safetensors file.

#include <vector>

#include "fuzz.h"
#include "mirabelle/convert/safetensors.h"

namespace {

void read(const mirabelle::SafetensorsReader& reader, const std::string& name, int64_t elements) {
  using mirabelle::fuzz::accepts;
  std::vector<float> values(elements);
  accepts([&] { reader.read(name, 0, values); });
  accepts([&] { reader.read(name, elements / 2, std::span(values).first(elements / 3)); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mirabelle::fuzz::MemoryFile file;
  file.write(mirabelle::fuzz::text_of(data, size));
  mirabelle::fuzz::accepts([&] {
    const mirabelle::SafetensorsReader reader(file.path());
    uint64_t bytes = 0;  // tensors do not overlap
    for (const auto& [name, tensor] : reader.tensors()) {
      bytes += tensor.end - tensor.begin;
      if (tensor.begin < 0 || tensor.end < tensor.begin || bytes > size) std::abort();
      const int64_t elements = tensor.shape.num_elements();
      if (elements < 0 || static_cast<uint64_t>(elements) > size) std::abort();
      read(reader, name, elements);
    }
  });
  return 0;
}
