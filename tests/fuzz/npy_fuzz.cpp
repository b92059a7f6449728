// A .npy file.

#include <algorithm>
#include <vector>

#include "fuzz.h"
#include "mirabelle/data/npy.h"

namespace {

void read(const std::filesystem::path& path) {
  constexpr int64_t kRowsAtOnce = 16;
  mirabelle::NpyReader matrix(path);
  std::vector<float> rows;
  for (int64_t begin = 0; begin < matrix.num_rows(); begin += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, matrix.num_rows() - begin);
    rows.resize(count * matrix.dim());
    matrix.read_rows(count, rows.data());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mirabelle::fuzz::MemoryFile file;
  file.write(mirabelle::fuzz::text_of(data, size));
  mirabelle::fuzz::accepts([] { read(file.path()); });
  return 0;
}
