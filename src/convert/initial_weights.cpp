#include "mirabelle/convert/initial_weights.h"

#include <algorithm>
#include <unordered_map>

#include "mirabelle/convert/hugging_face_config.h"
#include "mirabelle/convert/model_files.h"
#include "mirabelle/convert/vocabulary_map.h"
#include "mirabelle/tokenizer/tokenizer_file.h"
#include "mirabelle/training/checkpoint.h"

namespace mirabelle {
namespace fs = std::filesystem;
namespace {

/// Items' IDs and codes, without what encodes them.
struct ItemTable {
  SemanticIds ids;
  std::vector<std::string> item_ids;
};

ItemTable read_item_table(const fs::path& tokenizer_file) {
  return {read_semantic_ids(tokenizer_file), read_item_ids(tokenizer_file)};
}

void check_same_codes(const ItemTable& old, const ItemTable& now, const fs::path& from,
                      const fs::path& tokenizer_file) {
  std::unordered_map<std::string, int64_t> old_items;
  for (size_t i = 0; i < old.item_ids.size(); ++i) old_items[old.item_ids[i]] = i;
  for (size_t i = 0; i < now.item_ids.size(); ++i) {
    const auto found = old_items.find(now.item_ids[i]);
    if (found == old_items.end()) continue;
    const bool is_same = std::ranges::equal(old.ids.codes(found->second), now.ids.codes(i));
    MIRABELLE_CHECK_DATA(is_same, tokenizer_file.string(), ": item ", now.item_ids[i],
                         " has other codes than in ", from.string(),
                         ", so its weights mean other tokens; let the tokenizer of those weights "
                         "take the new items (mirabelle-tokenizer-build --assign)");
  }
}

}  // namespace

void read_initial_weights(const TensorView& flat, const ParameterLayout& layout,
                          const fs::path& from, const fs::path& tokenizer_file, uint64_t seed,
                          const Communicator& world) {
  const ItemTable now = read_item_table(tokenizer_file);
  ItemTable old;
  std::unique_ptr<TensorSource> source;
  if (fs::exists(from / "config.json")) {
    const HuggingFaceConfig config = read_hugging_face_config(from / "config.json");
    old.ids = SemanticIds().after_text(config.vocab_size);
    source = open_hugging_face_tensors(from);
  } else {
    const fs::path checkpoint = find_checkpoint(from);
    old = read_item_table(checkpoint / "tokenizer.h5");
    source = open_checkpoint_tensors(checkpoint, /*verifies=*/world.rank() == 0);
    if (world.rank() == 0) check_same_codes(old, now, checkpoint, tokenizer_file);
  }
  const RemappedVocabulary remapped(
      *source, map_vocabulary(now.ids.token_ranges(), old.ids.token_ranges()), seed);
  check_tensors(remapped, layout.logical_tensors(), from.string());
  read_share(flat, layout, remapped);
  source->verify();
  world.barrier();
}

}  // namespace mirabelle
