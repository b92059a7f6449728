// The files of a corpus: shard, catalogue and features, all in one HDF5 file. The input is
//   WHAT USERS ITEMS EVENTS\n and hdf5_content.h's text, where WHAT is the part that is read

#include <cstdio>
#include <nlohmann/json.hpp>

#include "fuzz.h"
#include "hdf5_content.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/data/verify.h"

namespace {

using nlohmann::json;

json manifest_of(int64_t users, int64_t items, int64_t events, uintmax_t bytes) {
  const json file = {{"file", "all.h5"}, {"bytes", bytes}, {"sha256", ""}};
  json shard = file;
  shard.update({{"users", users}, {"events", events}});
  return {{"schema", "mirabelle-corpus"},
          {"schema_version", 1},
          {"dataset", "fuzz"},
          {"users", users},
          {"items", items},
          {"events", events},
          {"split", {{"name", "leave_one_out"}}},
          {"split_hash", ""},
          {"tie_policy", {{"name", "file"}}},
          {"has_timestamps", true},
          {"event_columns", {"rating"}},
          {"user_id_type", "integer"},
          {"item_id_type", "string"},
          {"features", {{{"name", "title"}, {"dim", 2}}}},
          {"shards", {shard}},
          {"catalogue", file},
          {"feature_file", file}};
}

/// One of the members a time: opening a file takes long.
void read(const std::filesystem::path& folder, int64_t what) {
  const mirabelle::Corpus corpus(folder);
  const int64_t users = corpus.num_users(), items = corpus.num_items();
  std::vector<float> rows(items * 2);
  switch (what) {
    case 0:
      corpus.read_histories(0, 0, users, true);
      break;
    case 1:
      corpus.read_histories(0, users / 2, users);
      break;
    case 2:
      corpus.read_train_lengths(0, 0, users);
      break;
    case 3:
      corpus.read_user_ids(0, 0, users);
      break;
    case 4:
      corpus.read_event_column("rating", 0, 0, users);
      break;
    case 5:
      corpus.titles();
      break;
    case 6:
      if (items > 0) corpus.item_id(items - 1);
      break;
    case 7:
      if (items > 0) corpus.item_metadata(0);
      break;
    case 8:
      corpus.read_features("title", 0, items, rows.data());
      break;
    default:
      mirabelle::verify_corpus(folder);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mirabelle::fuzz::MemoryFolder folder;
  const std::string text(mirabelle::fuzz::text_of(data, size));
  long long what = 0, users = 0, items = 0, events = 0;
  std::sscanf(text.c_str(), "%lld %lld %lld %lld", &what, &users, &items, &events);
  mirabelle::fuzz::write_hdf5(folder.path() / "all.h5", text);
  const auto bytes = std::filesystem::file_size(folder.path() / "all.h5");
  folder.write("manifest.json", manifest_of(users, items, events, bytes).dump());
  mirabelle::fuzz::accepts([&] { read(folder.path(), what); });
  return 0;
}
