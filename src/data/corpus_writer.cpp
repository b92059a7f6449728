#include "mirabelle/data/corpus_writer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/core/random.h"
#include "split_hash.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// Elements that a column holds in memory before it goes to the file.
constexpr int64_t kBufferedEvents = 4 << 20;
constexpr int64_t kBufferedTextBytes = 16 << 20;
/// Rows of features are also read one by one, in random order.
constexpr int64_t kFeatureChunkBytes = 64 << 10;

/// A dataset that grows. One that never outgrew the memory is stored contiguously at the end, so
/// small corpora are small files.
template <typename T>
struct Column {
  std::string name;
  std::vector<T> values;
  bool appended = false;

  void spill(Hdf5File& file) {
    if (!appended) file.create_appendable(name, {}, kDTypeOf<T>);
    appended = true;
    file.append(name, view());
    values.clear();
  }
  void finish(Hdf5File& file) {
    if (appended) {
      spill(file);
    } else {
      file.write(name, view());
      values.clear();
    }
    appended = false;
  }
  TensorView view() const { return view_of(values.data(), {static_cast<int64_t>(values.size())}); }
};

/// Strings in the layout of Hdf5File::write_strings.
struct TextColumn {
  Column<uint8_t> bytes;
  Column<int64_t> offsets;
  int64_t total_bytes = 0;

  explicit TextColumn(const std::string& name)
      : bytes{name + "_bytes", {}}, offsets{name + "_offsets", {0}} {}
  void add(std::string_view text) {
    bytes.values.insert(bytes.values.end(), text.begin(), text.end());
    total_bytes += static_cast<int64_t>(text.size());
    offsets.values.push_back(total_bytes);
  }
  bool is_large() const { return static_cast<int64_t>(bytes.values.size()) >= kBufferedTextBytes; }
  void spill(Hdf5File& file) {
    bytes.spill(file);
    offsets.spill(file);
  }
  void finish(Hdf5File& file) {
    bytes.finish(file);
    offsets.finish(file);
    offsets.values.assign(1, 0);
    total_bytes = 0;
  }
};

void check_id(std::string_view id, const char* of, const std::string& source) {
  MIRABELLE_CHECK_DATA(is_valid_id(id), source, source.empty() ? "" : ": ", of,
                       " ID is empty or holds control characters");
}

template <typename T>
void append_permuted(std::vector<T>& to, const std::vector<T>& from,
                     const std::vector<int32_t>& order) {
  if (order.empty()) {
    to.insert(to.end(), from.begin(), from.end());
    return;
  }
  for (int32_t event : order) to.push_back(from[event]);
}

}  // namespace

bool is_valid_id(std::string_view id) {
  return !id.empty() && std::none_of(id.begin(), id.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  });
}

bool is_plain_integer(std::string_view id) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), value);
  if (error != std::errc() || end != id.data() + id.size()) return false;
  std::array<char, 24> digits;
  return std::string_view(digits.data(), std::to_chars(digits.begin(), digits.end(), value).ptr) ==
         id;
}

void CorpusOptions::check() const {
  MIRABELLE_CHECK_USAGE(!dataset.empty(), "the data set needs a name");
  MIRABELLE_CHECK_USAGE(split == "leave_one_out" || split == "time",
                        "split is leave_one_out or time, not ", split);
  MIRABELLE_CHECK_USAGE(split != "time" || valid_from <= test_from,
                        "the time split wants valid_from ", valid_from, " not after test_from ",
                        test_from);
  MIRABELLE_CHECK_USAGE(tie_policy == "file" || tie_policy == "shuffle",
                        "tie policy is file or shuffle, not ", tie_policy);
  MIRABELLE_CHECK_USAGE(users_per_shard > 0, "users_per_shard is ", users_per_shard,
                        ", wanted at least 1");
}

struct CorpusWriter::State {
  struct Feature {
    int64_t dim = 0;
    int64_t num_rows = 0;
  };

  CorpusOptions options;
  bool has_timestamps;
  std::vector<std::string> event_columns;
  AtomicPath folder;
  json manifest;

  Hdf5File catalogue;
  TextColumn item_ids{"item_ids"}, titles{"titles"}, metadata{"metadata"};
  std::vector<std::string> item_id_of;  // for the split hash
  bool integer_item_ids = true, integer_user_ids = true;

  std::optional<Hdf5File> feature_file;
  std::map<std::string, Feature> features;

  std::optional<Hdf5File> shard;
  Column<int64_t> offsets{"offsets", {0}}, timestamps{"timestamps", {}};
  Column<int32_t> items{"items", {}}, train_length{"train_length", {}},
      valid_length{"valid_length", {}};
  std::vector<Column<float>> columns;
  TextColumn user_ids{"user_ids"};
  int64_t shard_users = 0, shard_events = 0, num_users = 0, num_events = 0;

  SplitHash split_hash;
  std::vector<int32_t> order;  // of one history's events, if ties were shuffled

  State(const fs::path& path, const CorpusOptions& given, bool with_timestamps,
        std::vector<std::string> names)
      : options(given),
        has_timestamps(with_timestamps),
        event_columns(std::move(names)),
        folder((given.check(), path)),
        catalogue(create_catalogue()) {
    for (const std::string& name : event_columns) columns.push_back({"columns/" + name, {}});
    manifest["shards"] = json::array();
    manifest["features"] = json::array();
    manifest["feature_file"] = nullptr;
  }

  Hdf5File create_catalogue() {
    std::error_code error;
    fs::create_directory(folder.path(), error);
    MIRABELLE_CHECK(!error, folder.path().string(), ": cannot create: ", error.message());
    return Hdf5File::create(folder.path() / "catalogue.h5");
  }

  json describe(const Hdf5File& file) const {
    return {{"file", file.path().filename().string()},
            {"bytes", static_cast<int64_t>(fs::file_size(file.path()))},
            {"sha256", sha256_of_file(file.path())}};
  }

  void order_ties(const UserHistory& history) {
    order.clear();
    if (options.tie_policy != "shuffle" || !has_timestamps) return;
    order.resize(history.items.size());
    std::iota(order.begin(), order.end(), 0);
    Random random(random_key(static_cast<uint64_t>(options.tie_seed), "ties", {num_users}));
    std::vector<int32_t> tied;
    for (size_t begin = 0, end; begin < order.size(); begin = end) {
      const int64_t time = history.timestamps[begin];
      for (end = begin + 1; end < order.size() && history.timestamps[end] == time;) ++end;
      if (time < 0 || end - begin < 2) continue;
      tied.assign(order.begin() + begin, order.begin() + end);
      random.shuffle(tied);
      std::copy(tied.begin(), tied.end(), order.begin() + begin);
    }
  }

  void check_history(const UserHistory& history) const {
    const std::string& source = history.source.empty() ? history.id : history.source;
    check_id(history.id, "user", history.source);
    for (int32_t item : history.items) {
      MIRABELLE_CHECK_DATA(0 <= item && item < static_cast<int64_t>(item_id_of.size()), source,
                           ": item number ", item, " is not in the catalogue of ",
                           item_id_of.size());
    }
    const size_t wanted = history.items.size();
    MIRABELLE_CHECK_DATA(history.timestamps.size() == (has_timestamps ? wanted : 0), source,
                         ": has ", history.timestamps.size(), " times for ", wanted, " events");
    MIRABELLE_CHECK_DATA(history.columns.size() == columns.size(), source, ": has ",
                         history.columns.size(), " event columns, wanted ", columns.size());
    for (size_t i = 0; i < columns.size(); ++i) {
      MIRABELLE_CHECK_DATA(history.columns[i].size() == wanted, source, ": column ",
                           event_columns[i], " has ", history.columns[i].size(), " values for ",
                           wanted, " events");
    }
  }

  /// {train_length, valid_length}
  std::pair<int32_t, int32_t> cut(const UserHistory& history) const {
    const int32_t length = static_cast<int32_t>(history.items.size());
    if (options.split == "leave_one_out") {
      return length < 3 ? std::pair(length, 0) : std::pair(length - 2, 1);
    }
    const std::string& source = history.source.empty() ? history.id : history.source;
    const auto& times = history.timestamps;
    MIRABELLE_CHECK_DATA(has_timestamps, source, ": the time split wants times, there are none");
    for (int32_t event = 0; event < length; ++event) {
      MIRABELLE_CHECK_DATA(times[event] >= 0, source, ": event ", event + 1,
                           " has no known time, which the time split wants");
      MIRABELLE_CHECK_DATA(event == 0 || times[event - 1] <= times[event], source, ": event ",
                           event + 1, " has time ", times[event], ", before the former event's ",
                           times[event - 1], "; the time split wants ascending times");
    }
    const auto valid = std::lower_bound(times.begin(), times.end(), options.valid_from);
    const auto test = std::lower_bound(times.begin(), times.end(), options.test_from);
    return {static_cast<int32_t>(valid - times.begin()), static_cast<int32_t>(test - valid)};
  }

  void hash(const UserHistory& history, int32_t train, int32_t valid) {
    split_hash.begin_user(history.id);
    for (size_t event = 0; event < history.items.size(); ++event) {
      split_hash.add_item(item_id_of[history.items[order.empty() ? event : order[event]]]);
    }
    split_hash.end_user(train, valid);
  }

  void open_shard() {
    char name[32];
    std::snprintf(name, sizeof name, "shard-%05zu.h5", manifest["shards"].size());
    shard = Hdf5File::create(folder.path() / name);
  }

  template <typename Act>
  void for_each_column(const Act& act) {
    act(offsets), act(items), act(train_length), act(valid_length), act(user_ids);
    if (has_timestamps) act(timestamps);
    for (auto& column : columns) act(column);
  }

  void close_shard() {
    for_each_column([&](auto& column) { column.finish(*shard); });
    shard->close();
    json entry = describe(*shard);
    entry["users"] = shard_users;
    entry["events"] = shard_events;
    manifest["shards"].push_back(std::move(entry));
    shard.reset();
    offsets.values.assign(1, 0);
    shard_users = shard_events = 0;
  }
};

CorpusWriter::CorpusWriter(const fs::path& folder, const CorpusOptions& options,
                           bool has_timestamps, std::vector<std::string> event_columns)
    : state_(std::make_unique<State>(folder, options, has_timestamps, std::move(event_columns))) {}

CorpusWriter::~CorpusWriter() = default;

void CorpusWriter::add_item(std::string_view id, std::string_view title,
                            std::string_view metadata) {
  State& s = *state_;
  check_id(id, "item", "");
  MIRABELLE_CHECK_DATA(s.item_id_of.size() < INT32_MAX, "more than ", INT32_MAX, " items");
  s.integer_item_ids = s.integer_item_ids && is_plain_integer(id);
  s.item_id_of.emplace_back(id);
  s.item_ids.add(id);
  s.titles.add(title);
  s.metadata.add(metadata);
  for (TextColumn* column : {&s.item_ids, &s.titles, &s.metadata}) {
    if (column->is_large()) column->spill(s.catalogue);
  }
}

int64_t CorpusWriter::num_items() const { return static_cast<int64_t>(state_->item_id_of.size()); }
int64_t CorpusWriter::num_users() const { return state_->num_users; }
int64_t CorpusWriter::num_events() const { return state_->num_events; }

void CorpusWriter::add_feature(const std::string& name, int64_t dim) {
  State& s = *state_;
  MIRABELLE_CHECK_DATA(!name.empty() && name.find('/') == std::string::npos && dim > 0,
                       "a feature needs a name without slashes and at least one column, got \"",
                       name, "\" with ", dim);
  MIRABELLE_CHECK_DATA(!s.features.contains(name), "feature ", name, " comes twice");
  if (!s.feature_file) s.feature_file = Hdf5File::create(s.folder.path() / "features.h5");
  s.feature_file->create_appendable("features/" + name, {dim}, DType::kFloat32, kFeatureChunkBytes);
  s.features[name] = {dim, 0};
  s.manifest["features"].push_back({{"name", name}, {"dim", dim}});
}

void CorpusWriter::add_feature_rows(const std::string& name, const float* rows, int64_t num_rows) {
  State& s = *state_;
  const auto feature = s.features.find(name);
  MIRABELLE_CHECK(feature != s.features.end(), "feature ", name, " was not added");
  feature->second.num_rows += num_rows;
  s.feature_file->append("features/" + name, view_of(rows, {num_rows, feature->second.dim}));
}

void CorpusWriter::add_user(const UserHistory& history) {
  State& s = *state_;
  s.check_history(history);
  const auto [train, valid] = s.cut(history);  // ties have equal times, so their order is no matter
  s.order_ties(history);
  s.hash(history, train, valid);
  s.integer_user_ids = s.integer_user_ids && is_plain_integer(history.id);
  if (!s.shard) s.open_shard();
  s.user_ids.add(history.id);
  append_permuted(s.items.values, history.items, s.order);
  if (s.has_timestamps) append_permuted(s.timestamps.values, history.timestamps, s.order);
  for (size_t i = 0; i < s.columns.size(); ++i) {
    append_permuted(s.columns[i].values, history.columns[i], s.order);
  }
  const int64_t length = static_cast<int64_t>(history.items.size());
  s.train_length.values.push_back(train);
  s.valid_length.values.push_back(valid);
  s.shard_events += length;
  s.num_events += length;
  s.offsets.values.push_back(s.shard_events);
  ++s.shard_users;
  ++s.num_users;
  if (s.shard_users == s.options.users_per_shard) {
    s.close_shard();
  } else if (static_cast<int64_t>(s.items.values.size()) >= kBufferedEvents ||
             s.user_ids.is_large()) {
    s.for_each_column([&](auto& column) { column.spill(*s.shard); });
  }
}

void CorpusWriter::add_to_manifest(const std::string& key, const json& value) {
  state_->manifest[key] = value;
}

void CorpusWriter::finish() {
  State& s = *state_;
  if (s.shard) s.close_shard();
  for (TextColumn* column : {&s.item_ids, &s.titles, &s.metadata}) column->finish(s.catalogue);
  s.catalogue.close();
  json& manifest = s.manifest;
  manifest["catalogue"] = s.describe(s.catalogue);
  if (s.feature_file) {
    for (const auto& [name, feature] : s.features) {
      MIRABELLE_CHECK_DATA(feature.num_rows == num_items(), "feature ", name, " has ",
                           feature.num_rows, " rows, the catalogue has ", num_items(), " items");
    }
    s.feature_file->close();
    manifest["feature_file"] = s.describe(*s.feature_file);
  }
  manifest["schema"] = "mirabelle-corpus";
  manifest["schema_version"] = 1;
  manifest["dataset"] = s.options.dataset;
  manifest["users"] = s.num_users;
  manifest["items"] = num_items();
  manifest["events"] = s.num_events;
  manifest["split"] = {{"name", s.options.split}};
  if (s.options.split == "time") {
    manifest["split"]["valid_from"] = s.options.valid_from;
    manifest["split"]["test_from"] = s.options.test_from;
  }
  manifest["split_hash"] = s.split_hash.hex_digest();
  manifest["tie_policy"] = {{"name", s.options.tie_policy}};
  if (s.options.tie_policy == "shuffle") manifest["tie_policy"]["seed"] = s.options.tie_seed;
  manifest["has_timestamps"] = s.has_timestamps;
  manifest["event_columns"] = s.event_columns;
  manifest["user_id_type"] = s.integer_user_ids ? "integer" : "string";
  manifest["item_id_type"] = s.integer_item_ids ? "integer" : "string";
  write_text_file(s.folder.path() / "manifest.json", manifest.dump(2) + "\n");
  s.folder.commit();
}

}  // namespace mirabelle
