// A tokenizer's file. The input is hdf5_content.h's text.

#include "fuzz.h"
#include "hdf5_content.h"
#include "mirabelle/tokenizer/tokenizer_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mirabelle::fuzz::MemoryFolder folder;
  static const std::filesystem::path path = folder.path() / "tokenizer.h5";
  mirabelle::fuzz::write_hdf5(path, mirabelle::fuzz::text_of(data, size));
  mirabelle::fuzz::accepts([] {
    const mirabelle::TokenizerFile tokenizer = mirabelle::read_tokenizer_file(path);
    if (static_cast<int64_t>(tokenizer.item_ids.size()) != tokenizer.ids.num_items()) std::abort();
    const mirabelle::SemanticIdTrie trie(tokenizer.ids);
  });
  return 0;
}
