// The manifest.json of a checkpoint.

#include "fuzz.h"
#include "mirabelle/training/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mirabelle::fuzz::MemoryFolder folder;
  folder.write("manifest.json", mirabelle::fuzz::text_of(data, size));
  mirabelle::fuzz::accepts([] {
    const mirabelle::TrainingState state = mirabelle::read_training_state(folder.path());
    if (state.step < 0 || state.cursor.block < 0) std::abort();
  });
  return 0;
}
