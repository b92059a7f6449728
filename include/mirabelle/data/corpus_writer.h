#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace mirabelle {

// The corpus format, schema version 1. A corpus is a folder:
//
//   manifest.json      what the corpus is: JSON, below
//   shard-00000.h5 …   user histories, `users_per_shard` users each, in user order
//   catalogue.h5       what is known about the items, in item order
//   features.h5        feature matrices (absent if there are none)
//
// Items and users are numbered from 0; their own IDs are kept as text. An ID is not empty and holds
// no control characters.
//
// A shard of n users with e events holds the datasets
//   offsets        int64   [n + 1]  user u's events are [offsets[u], offsets[u + 1]), oldest first
//   items          int32   [e]      item numbers
//   timestamps     int64   [e]      seconds since 1970, -1 = unknown; only if has_timestamps
//   columns/NAME   float32 [e]      one per event column; NaN = not given
//   train_length   int32   [n]      events that train; they come first in a history
//   valid_length   int32   [n]      validation targets, the next events; all later ones are test
//   targets user_ids_bytes uint8, user_ids_offsets int64 [n + 1]: the IDs (core/hdf5_file.h,
//   write_strings)
// The catalogue holds item_ids, titles (empty = unknown) and metadata (one JSON object per item),
// as strings in the same way. features.h5 holds features/NAME, float32 [num_items, dim].
//
// The manifest:
//   schema "mirabelle-corpus", schema_version 1, dataset, users, items, events
//   split            {"name": "leave_one_out"} or {"name": "time", "valid_from": t, "test_from": t}
//   split_hash       below
//   tie_policy       {"name": "file"} or {"name": "shuffle", "seed": n}
//   has_timestamps   bool
//   event_columns    ["rating", …]
//   user_id_type, item_id_type   "integer" if all IDs are plain decimal integers, else "string"
//   features         [{"name", "dim"}, …]
//   shards           [{"file", "users", "events", "bytes", "sha256"}, …]
//   catalogue        {"file", "bytes", "sha256"};   feature_file the same, or null
//   law              only of a synthetic world: data/synthetic_corpus.h
//
// split_hash is the SHA-256 of a text with one line per user, in user order:
//   USER_ID \t ITEM_ID \t … \t ITEM_ID \t TRAIN_LENGTH \t VALID_LENGTH \n
// with the data set's own IDs. It says that two figures are of the same events in the same order
// and of the same split, however the corpus is sharded.

/// What a corpus is called and how its histories are cut.
struct CorpusOptions {
  std::string dataset;  ///< its name

  /// "leave_one_out": the last event is the test target, the one before it the validation target;
  /// histories of fewer than 3 events only train. "time": events with time >= test_from are test
  /// targets, those in [valid_from, test_from) validation targets; all times must be known and
  /// ascend within a history.
  std::string split = "leave_one_out";
  int64_t valid_from = 0;  ///< seconds since 1970
  int64_t test_from = 0;

  /// Order of neighbouring events of the same known time: "file" keeps it, "shuffle" draws it anew.
  std::string tie_policy = "file";
  int64_t tie_seed = 0;

  int64_t users_per_shard = 100'000;

  /// Told now and then how far the work is: events so far, and the part of the input that is done.
  std::function<void(int64_t events, double fraction)> progress;

  void check() const;  ///< kUsage Errors
};

/// One user's events, oldest first.
struct UserHistory {
  std::string id;
  std::vector<int32_t> items;               ///< item numbers, from 0
  std::vector<int64_t> timestamps;          ///< as many, or empty if the corpus has none
  std::vector<std::vector<float>> columns;  ///< as many per event column
  std::string source;  ///< where it came from, named in errors: "sequences.txt:7"; empty: the ID is
};

/// Writes a corpus folder. It appears whole at finish(); until then, and after an Error, there is
/// nothing at its place. Memory grows with the items, not with users or events. The calls, in this
/// order: add_item for every item, then features and users in any order, then finish.
class CorpusWriter {
 public:
  CorpusWriter(const std::filesystem::path& folder, const CorpusOptions& options,
               bool has_timestamps, std::vector<std::string> event_columns);
  ~CorpusWriter();

  /// `metadata` is the text of one JSON object.
  void add_item(std::string_view id, std::string_view title = "", std::string_view metadata = "{}");
  int64_t num_items() const;

  void add_feature(const std::string& name, int64_t dim);
  /// The next rows of one feature, float32 [num_rows, dim].
  void add_feature_rows(const std::string& name, const float* rows, int64_t num_rows);

  /// Orders ties, cuts the history by the split, and appends it. kData Errors if the history cannot
  /// be cut or holds unknown items. The caller sees to it that no user comes twice.
  void add_user(const UserHistory& history);
  int64_t num_users() const;
  int64_t num_events() const;

  /// A further entry of the manifest: what else is known of the corpus, e.g. the law that drew it.
  void add_to_manifest(const std::string& key, const nlohmann::json& value);

  /// Writes what is left and the manifest, and puts the folder in place of a former one.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Whether text can be an ID: not empty, without control characters.
bool is_valid_id(std::string_view id);
/// Whether an ID is a decimal integer as std::to_string prints it.
bool is_plain_integer(std::string_view id);

}  // namespace mirabelle
