#include "mirabelle/data/verify.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/data/corpus_writer.h"
#include "split_hash.h"
#include "unique_ids.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kUsersAtOnce = 16384;
constexpr int64_t kFeatureElementsAtOnce = 1 << 22;

class Verifier {
 public:
  Verifier(const fs::path& folder, const std::function<void(double)>& progress)
      : corpus_(folder, CorpusFiles::kCheckedLater), progress_(progress), runs_(run_folder()) {}

  std::vector<std::string> run() {
    read_item_ids();
    check_catalogue();
    check_features();
    UniqueIds user_ids(runs_.path());
    for (int64_t shard = 0; shard < corpus_.num_shards(); ++shard) {
      if (check_file(entry(shard)) && check_shapes(shard)) {
        check_users(shard, user_ids);
      } else {
        all_users_hashed_ = false;
      }
      if (progress_) {
        progress_(static_cast<double>(shard + 1) / static_cast<double>(corpus_.num_shards()));
      }
    }
    user_ids.for_each_repeated([&](std::string_view id, int64_t first, int64_t second) {
      report(name_of_user(second), ": dataset user_ids: user ", id,
             " has come before, as user number ", first);
    });
    const std::string hash = split_hash_.hex_digest();
    if (all_users_hashed_ && hash != corpus_.split_hash()) {
      report(corpus_.folder() / "manifest.json", ": split_hash is ", corpus_.split_hash(),
             ", the histories give ", hash);
    }
    return problems_;
  }

 private:
  static fs::path run_folder() {
    return fs::temp_directory_path() / ("mirabelle-verify-" + std::to_string(::getpid()));
  }

  template <typename Where, typename... Parts>
  void report(const Where& where, const Parts&... parts) {
    std::ostringstream message;
    if constexpr (std::is_same_v<Where, fs::path>) {
      message << where.string();
    } else {
      message << where;
    }
    (message << ... << parts);
    problems_.push_back(message.str());
  }

  /// Runs a check that throws, and keeps what it says.
  template <typename Check>
  bool holds(const Check& check) {
    try {
      check();
      return true;
    } catch (const Error& error) {
      problems_.push_back(error.what());
      return false;
    }
  }

  const json& entry(int64_t shard) const { return corpus_.manifest()["shards"][shard]; }
  fs::path path_of(const json& file_entry) const {
    return corpus_.folder() / file_entry["file"].get<std::string>();
  }
  std::string name_of_user(int64_t user) const {
    int64_t shard = 0;
    while (shard + 1 < corpus_.num_shards() && corpus_.shard_first_user(shard + 1) <= user) ++shard;
    return path_of(entry(shard)).string();
  }

  /// Whether the file has the promised size, so that reading on makes sense. A wrong checksum alone
  /// is reported, and the contents are looked at all the same, since they may say what was changed.
  bool check_file(const json& file_entry) {
    const fs::path path = path_of(file_entry);
    return holds([&] {
      std::error_code error;
      const auto bytes = static_cast<int64_t>(fs::file_size(path, error));
      MIRABELLE_CHECK_DATA(!error, path.string(), ": cannot read: ", error.message());
      const std::string sha256 = sha256_of_file(path);
      if (sha256 != file_entry["sha256"]) {
        report(path, ": SHA-256 is ", sha256, ", the manifest says ",
               file_entry["sha256"].get<std::string>());
      }
      MIRABELLE_CHECK_DATA(bytes == file_entry["bytes"], path.string(), ": has ", bytes,
                           " bytes, the manifest says ", file_entry["bytes"].dump());
    });
  }

  void check_dataset(const Hdf5File& file, const std::string& name, const Shape& wanted,
                     DType dtype, bool& good) {
    good = holds([&] {
             const Shape shape = file.shape(name);
             MIRABELLE_CHECK_DATA(shape == wanted, file.path().string(), ": dataset ", name,
                                  ": has shape ", shape, ", wanted ", wanted);
             MIRABELLE_CHECK_DATA(file.dtype(name) == dtype, file.path().string(), ": dataset ",
                                  name, ": holds ", to_string(file.dtype(name)), ", wanted ",
                                  to_string(dtype));
           }) &&
           good;
  }

  /// Two datasets: the offsets of n strings, and as many bytes as the last one says.
  void check_strings(const Hdf5File& file, const std::string& name, int64_t n, bool& good) {
    bool offsets_good = true;
    check_dataset(file, name + "_offsets", {n + 1}, DType::kInt64, offsets_good);
    int64_t bytes = 0;
    offsets_good =
        offsets_good && holds([&] { file.read_rows(name + "_offsets", n, view_of(&bytes, {1})); });
    if (offsets_good) check_dataset(file, name + "_bytes", {bytes}, DType::kUint8, good);
    good = good && offsets_good;
  }

  bool check_shapes(int64_t shard) {
    const int64_t users = entry(shard)["users"], events = entry(shard)["events"];
    bool good = true;
    good = holds([&] {
             const Hdf5File file = Hdf5File::open(path_of(entry(shard)));
             check_dataset(file, "offsets", {users + 1}, DType::kInt64, good);
             check_dataset(file, "items", {events}, DType::kInt32, good);
             if (corpus_.has_timestamps()) {
               check_dataset(file, "timestamps", {events}, DType::kInt64, good);
             }
             for (const std::string& column : corpus_.event_columns()) {
               check_dataset(file, "columns/" + column, {events}, DType::kFloat32, good);
             }
             check_dataset(file, "train_length", {users}, DType::kInt32, good);
             check_dataset(file, "valid_length", {users}, DType::kInt32, good);
             check_strings(file, "user_ids", users, good);
           }) &&
           good;
    return good;
  }

  void check_users(int64_t shard, UniqueIds& user_ids) {
    const int64_t users = corpus_.shard_users(shard);
    for (int64_t begin = 0; begin < users; begin += kUsersAtOnce) {
      const int64_t end = std::min(begin + kUsersAtOnce, users);
      std::optional<HistoryBlock> block;
      std::vector<std::string> ids;
      holds([&] { block = corpus_.read_histories(shard, begin, end, true); });
      holds([&] {
        ids = Hdf5File::open(path_of(entry(shard))).read_strings("user_ids", begin, end);
      });
      const int64_t first = corpus_.shard_first_user(shard) + begin;
      for (size_t i = 0; i < ids.size(); ++i) {
        check_id(ids[i], "user", path_of(entry(shard)), first + static_cast<int64_t>(i));
        user_ids.add(ids[i], first + static_cast<int64_t>(i));
      }
      for (const std::string& column : corpus_.event_columns()) {
        check_column(column, shard, begin, end);
      }
      if (!block || ids.empty()) {
        all_users_hashed_ = false;
        continue;
      }
      for (int64_t user = 0; user < block->num_users(); ++user) check_user(shard, *block, user);
      hash(*block, ids);
    }
  }

  void check_column(const std::string& name, int64_t shard, int64_t begin, int64_t end) {
    holds([&] {
      for (const float value : corpus_.read_event_column(name, shard, begin, end)) {
        MIRABELLE_CHECK_DATA(!std::isinf(value), path_of(entry(shard)).string(),
                             ": dataset columns/", name, ": holds ", value, " among users [", begin,
                             ", ", end, ")");
      }
    });
  }

  void check_user(int64_t shard, const HistoryBlock& block, int64_t user) {
    const int64_t begin = block.offsets[user], end = block.offsets[user + 1];
    const int64_t length = end - begin, number = block.first_user + user;
    int64_t train = length, valid = 0;
    if (corpus_.split_name() == "time") {
      const json& split = corpus_.manifest()["split"];
      const auto first = block.timestamps.begin() + begin, last = block.timestamps.begin() + end;
      if (!std::is_sorted(first, last)) {
        report(path_of(entry(shard)), ": dataset timestamps: user number ", number,
               "'s times do not ascend, which the time split wants");
        return;
      }
      train = std::lower_bound(first, last, split["valid_from"].get<int64_t>()) - first;
      valid = std::lower_bound(first, last, split["test_from"].get<int64_t>()) - first - train;
    } else if (length >= 3) {
      train = length - 2;
      valid = 1;
    }
    if (train != block.train_length[user] || valid != block.valid_length[user]) {
      report(path_of(entry(shard)), ": dataset train_length: user number ", number, " of ", length,
             " events has ", block.train_length[user], " for training and ",
             block.valid_length[user], " for validation, the split gives ", train, " and ", valid);
    }
    for (int64_t event = begin; corpus_.has_timestamps() && event < end; ++event) {
      if (block.timestamps[event] >= -1) continue;
      report(path_of(entry(shard)), ": dataset timestamps: user number ", number, " has time ",
             block.timestamps[event], ", wanted at least -1");
      break;
    }
  }

  void hash(const HistoryBlock& block, const std::vector<std::string>& ids) {
    if (item_ids_.empty() && corpus_.num_items() > 0) all_users_hashed_ = false;
    if (!all_users_hashed_) return;
    for (int64_t user = 0; user < block.num_users(); ++user) {
      split_hash_.begin_user(ids[user]);
      for (const int32_t item : block.history(user)) split_hash_.add_item(item_ids_[item]);
      split_hash_.end_user(block.train_length[user], block.valid_length[user]);
    }
  }

  void check_id(const std::string& id, const char* of, const fs::path& path, int64_t number) {
    const bool integer = corpus_.manifest()[std::string(of) + "_id_type"] == "integer";
    if (!is_valid_id(id)) {
      report(path, ": dataset ", of, "_ids: ", of, " number ", number,
             "'s ID is empty or holds control characters");
    } else if (integer && !is_plain_integer(id)) {
      report(path, ": dataset ", of, "_ids: ", of, " number ", number, "'s ID \"", id,
             "\" is no integer, which the manifest promises");
    }
  }

  void read_item_ids() {
    const json& catalogue = corpus_.manifest()["catalogue"];
    const fs::path path = path_of(catalogue);
    bool good = check_file(catalogue);
    good = good && holds([&] {
             const Hdf5File file = Hdf5File::open(path);
             for (const char* name : {"item_ids", "titles", "metadata"}) {
               check_strings(file, name, corpus_.num_items(), good);
             }
           });
    if (!good) return;
    holds([&] { item_ids_ = Hdf5File::open(path).read_strings("item_ids"); });
    UniqueIds unique(runs_.path());
    for (size_t item = 0; item < item_ids_.size(); ++item) {
      check_id(item_ids_[item], "item", path, static_cast<int64_t>(item));
      unique.add(item_ids_[item], static_cast<int64_t>(item));
    }
    unique.for_each_repeated([&](std::string_view id, int64_t first, int64_t second) {
      report(path, ": dataset item_ids: item number ", second, " has the ID ", id,
             " of item number ", first);
    });
  }

  void check_catalogue() {
    if (item_ids_.empty()) return;
    const fs::path path = path_of(corpus_.manifest()["catalogue"]);
    holds([&] {
      const Hdf5File file = Hdf5File::open(path);
      file.read_strings("titles");
      int64_t item = 0;
      for (const std::string& text : file.read_strings("metadata")) {
        const std::string where =
            path.string() + ": dataset metadata: item number " + std::to_string(item);
        holds([&] {
          MIRABELLE_CHECK_DATA(parse_json(text, where).is_object(), where, " has no JSON object");
        });
        ++item;
      }
    });
  }

  void check_features() {
    const json& file_entry = corpus_.manifest()["feature_file"];
    if (file_entry.is_null() || !check_file(file_entry)) return;
    const std::string path = path_of(file_entry).string();
    for (const std::string& name : corpus_.feature_names()) {
      const int64_t dim = corpus_.feature_dim(name), num_items = corpus_.num_items();
      holds([&] {
        const int64_t at_once =
            std::max<int64_t>(1, kFeatureElementsAtOnce / std::max<int64_t>(1, dim));
        std::vector<float> rows(std::min(at_once, num_items) * dim);
        for (int64_t begin = 0; begin < num_items; begin += at_once) {
          const int64_t end = std::min(begin + at_once, num_items);
          corpus_.read_features(name, begin, end, rows.data());
          for (int64_t i = 0; i < (end - begin) * dim; ++i) {
            MIRABELLE_CHECK_DATA(std::isfinite(rows[i]), path, ": dataset features/", name,
                                 ": row ", begin + i / dim, ", column ", i % dim, " is ", rows[i]);
          }
        }
      });
    }
  }

  Corpus corpus_;
  const std::function<void(double)>& progress_;
  AtomicPath runs_;  // never committed, so removed at the end
  std::vector<std::string> problems_;
  std::vector<std::string> item_ids_;
  SplitHash split_hash_;
  bool all_users_hashed_ = true;
};

}  // namespace

std::vector<std::string> verify_corpus(const fs::path& folder,
                                       const std::function<void(double)>& progress) {
  try {
    return Verifier(folder, progress).run();
  } catch (const Error& error) {  // the manifest says too little to go on
    return {error.what()};
  }
}

}  // namespace mirabelle
