// The manifest.json of a corpus. Of its other files there are only the sizes.

#include "fuzz.h"
#include "mirabelle/data/corpus.h"

namespace {

using mirabelle::Corpus;
using mirabelle::CorpusFiles;

const mirabelle::fuzz::MemoryFolder& corpus_folder() {
  static const mirabelle::fuzz::MemoryFolder folder;
  static const bool once = [] {
    for (const char* name : {"shard-00000.h5", "catalogue.h5", "features.h5"}) {
      folder.write(name, std::string(4096, 'x'));
    }
    return true;
  }();
  (void)once;
  return folder;
}

void use(const Corpus& corpus) {
  corpus.dataset(), corpus.split_name(), corpus.split_hash(), corpus.tie_policy();
  int64_t users = 0;
  for (int64_t shard = 0; shard < corpus.num_shards(); ++shard) users += corpus.shard_users(shard);
  if (users != corpus.num_users() || corpus.num_items() < 0 || corpus.num_events() < 0)
    std::abort();
  corpus.has_timestamps(), corpus.event_columns();
  for (const std::string& name : corpus.feature_names()) corpus.feature_dim(name);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto& folder = corpus_folder();
  folder.write("manifest.json", mirabelle::fuzz::text_of(data, size));
  mirabelle::fuzz::accepts([&] {
    use(Corpus(folder.path(), CorpusFiles::kCheckedLater));
    const Corpus corpus(folder.path());  // then every number has room in a file
    if (corpus.num_items() > 4096 || corpus.num_users() > 4096 * corpus.num_shards()) std::abort();
  });
  return 0;
}
