#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/core/hdf5_file.h"

namespace mirabelle {

/// Which targets a figure is of.
enum class Split { kValidation, kTest };
const char* to_string(Split split);
Split parse_split(const std::string& name);  ///< "validation" or "test"; else a kUsage Error

/// A data set's own ID of a user or item as text, without the quotes of a JSON string.
std::string id_text(const nlohmann::json& id);

/// Some neighbouring users of one shard, with their histories, oldest event first.
/// Events [0, train_length) train the model; the next valid_length are validation targets; the rest
/// are test targets. Leave-one-out is the case valid_length = test length = 1.
struct HistoryBlock {
  int64_t first_user = 0;             ///< index of user 0 of this block within the corpus
  std::vector<int64_t> offsets;       ///< [num_users + 1], into the event arrays; starts at 0
  std::vector<int32_t> items;         ///< [num_events], 0-based item indices
  std::vector<int64_t> timestamps;    ///< [num_events] seconds since 1970, or empty; -1 = unknown
  std::vector<int32_t> train_length;  ///< [num_users]
  std::vector<int32_t> valid_length;  ///< [num_users]

  int64_t num_users() const { return static_cast<int64_t>(train_length.size()); }
  std::span<const int32_t> history(int64_t user) const {
    return std::span(items).subspan(offsets[user], offsets[user + 1] - offsets[user]);
  }
  std::span<const int32_t> training_part(int64_t user) const {
    return history(user).first(train_length[user]);
  }
  /// What the model may see when it predicts the targets of `split`.
  std::span<const int32_t> context(int64_t user, Split split) const {
    return history(user).first(train_length[user] +
                               (split == Split::kTest ? valid_length[user] : 0));
  }
  std::span<const int32_t> targets(int64_t user, Split split) const {
    return split == Split::kTest ? history(user).subspan(train_length[user] + valid_length[user])
                                 : history(user).subspan(train_length[user], valid_length[user]);
  }
};

/// Whether the sizes of a corpus' files are compared with its manifest at once, or when they are
/// opened, by those who look for all that is wrong.
enum class CorpusFiles { kChecked, kCheckedLater };

/// Reads a corpus folder (format: data/corpus_writer.h). Items and users are numbered from 0 in
/// catalogue and file order; the data set's own IDs are kept beside. Errors are kData Errors.
class Corpus {
 public:
  /// Reads the manifest only. Throws if it is missing, malformed or of another schema version,
  /// promises more users, events, items or features than its files have room for, or if a file has
  /// another size than it says (that of the features: when they are read).
  explicit Corpus(const std::filesystem::path& folder,
                  CorpusFiles with_files = CorpusFiles::kChecked);

  const std::filesystem::path& folder() const { return folder_; }
  const nlohmann::json& manifest() const { return manifest_; }
  std::string dataset() const;     ///< its name
  std::string split_name() const;  ///< "leave_one_out" or "time"
  std::string split_hash() const;  ///< SHA-256 over users, items, order and split
  std::string tie_policy() const;  ///< how events of equal time were ordered: "file", "shuffle"
  int64_t num_users() const;
  int64_t num_items() const;
  int64_t num_events() const;

  int64_t num_shards() const;
  int64_t shard_users(int64_t shard) const;
  int64_t shard_first_user(int64_t shard) const;

  /// Users [begin, end) of a shard. Checks offsets, lengths and item range.
  HistoryBlock read_histories(int64_t shard, int64_t begin, int64_t end,
                              bool with_timestamps = false) const;
  /// Only the lengths of the training parts of users [begin, end) of a shard.
  std::vector<int32_t> read_train_lengths(int64_t shard, int64_t begin, int64_t end) const;

  /// The data set's own IDs: JSON integers or strings, as they were in the source.
  nlohmann::json item_id(int64_t item) const;
  std::vector<nlohmann::json> read_user_ids(int64_t shard, int64_t begin, int64_t end) const;
  /// What columns of numbers the events have, and one of them: [events of users begin..end).
  bool has_timestamps() const;
  std::vector<std::string> event_columns() const;
  std::vector<float> read_event_column(const std::string& name, int64_t shard, int64_t begin,
                                       int64_t end) const;
  /// The JSON object that the source had for one item.
  nlohmann::json item_metadata(int64_t item) const;
  /// Titles of all items; empty where unknown. Read at the first call, then kept.
  const std::vector<std::string>& titles() const;

  std::vector<std::string> feature_names() const;
  int64_t feature_dim(const std::string& name) const;
  /// Rows [begin, end) of one feature matrix, float32 [end - begin, dim], into `out`. Its file
  /// stays open from the first call on.
  void read_features(const std::string& name, int64_t begin, int64_t end, float* out) const;

 private:
  void check_files() const;
  Hdf5File open_file(const nlohmann::json& entry) const;

  std::filesystem::path folder_;
  nlohmann::json manifest_;
  std::vector<int64_t> first_users_;  // [num_shards + 1]
  mutable std::vector<std::string> titles_, item_ids_;
  mutable std::shared_ptr<const Hdf5File> feature_file_;
};

}  // namespace mirabelle
