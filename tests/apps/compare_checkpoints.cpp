// Whether two checkpoints hold the same bits, whatever layouts wrote them, for launch/kill_test.py:
//   compare_checkpoints FOLDER FOLDER
// Everything is read as one rank would, so a checkpoint that is not whole is an error.
#include <cstring>
#include <iostream>
#include <vector>

#include "mirabelle/config/command_line.h"
#include "mirabelle/config/config.h"
#include "mirabelle/tokenizer/semantic_id.h"
#include "mirabelle/training/checkpoint.h"

namespace {

using namespace mirabelle;
namespace fs = std::filesystem;

/// Weights, then the moments of their gradients.
std::vector<float> read_everything(const fs::path& folder, const Communicator& self) {
  const Config config = config_from_yaml(read_checkpoint_config(folder), folder.string());
  const SemanticIds ids = SemanticIds::read(folder / "tokenizer.h5");
  const ParameterLayout layout(config.model, ids.padded_vocab_size());
  const int64_t size = layout.num_elements();
  std::vector<float> values(3 * size);
  const TensorView all = view_of(values);
  read_checkpoint_tensors(
      folder, layout, {all.rows(0, size), all.rows(size, 2 * size), all.rows(2 * size, 3 * size)},
      self);
  return values;
}

}  // namespace

int main(int, char** argv) {
  return run_serial_main("compare_checkpoints", [&](const Communicator& self) {
    const std::vector<float> a = read_everything(argv[1], self), b = read_everything(argv[2], self);
    const bool is_equal =
        a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    if (!is_equal) std::cerr << argv[1] << " and " << argv[2] << " hold different bits\n";
    return is_equal ? 0 : 1;
  });
}
