#include "mirabelle/data/corpus.h"

#include <algorithm>
#include <charconv>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"

namespace mirabelle {
namespace {

using nlohmann::json;

// What the files hold at least of each: offsets of three texts; offsets of the events and of an ID,
// and two lengths; an item.
constexpr int64_t kCatalogueBytesPerItem = 24, kShardBytesPerUser = 24, kShardBytesPerEvent = 4;

/// Memory is allocated by the manifest's numbers: they must not exceed what its files have room
/// for.
void check_room(int64_t count, int64_t room, const std::string& where) {
  MIRABELLE_CHECK_DATA(count <= room, where, " is ", count, ", which has no room in the file");
}

/// A count, an index or a size.
int64_t count_of(const json& object, const char* key, const std::string& where) {
  const auto value = json_field<int64_t>(object, key, where);
  MIRABELLE_CHECK_DATA(value >= 0, where, ": \"", key, "\" is ", value,
                       ", wanted an integer of at least 0");
  return value;
}

void check_one_of(const json& object, const char* key, const std::vector<std::string>& choices,
                  const std::string& where) {
  const auto value = json_field<std::string>(object, key, where);
  for (const std::string& choice : choices) {
    if (value == choice) return;
  }
  throw_error(ErrorKind::kData, where, ": \"", key, "\" is ", shown(value), ", wanted \"",
              choices.front(), "\" or \"", choices.back(), '"');
}

/// Returns the file's bytes.
int64_t check_file_entry(const json& entry, const std::string& where) {
  json_field<std::string>(entry, "sha256", where);
  const auto name = json_field<std::string>(entry, "file", where);
  MIRABELLE_CHECK_DATA(is_plain_name(name), where, ": \"file\" is ", shown(name),
                       ", wanted a name within the folder");
  return count_of(entry, "bytes", where);
}

void check_split(const json& manifest, const std::string& where) {
  const auto split = json_field<json>(manifest, "split", where);
  check_one_of(split, "name", {"leave_one_out", "time"}, where + ": split");
  const bool has_timestamps = json_field<bool>(manifest, "has_timestamps", where);
  if (split["name"] == "time") {
    for (const char* key : {"valid_from", "test_from"}) {
      json_field<int64_t>(split, key, where + ": split");
    }
    MIRABELLE_CHECK_DATA(has_timestamps, where, ": a time split, but has_timestamps is false");
  }
  check_one_of(json_field<json>(manifest, "tie_policy", where), "name", {"file", "shuffle"},
               where + ": tie_policy");
}

void check_items(const json& manifest, const std::string& where) {
  const int64_t items = count_of(manifest, "items", where);
  const auto catalogue = json_field<json>(manifest, "catalogue", where);
  check_room(items, check_file_entry(catalogue, where + ": catalogue") / kCatalogueBytesPerItem,
             where + ": items");
  const auto features = json_field<std::vector<json>>(manifest, "features", where);
  const auto file = json_field<json>(manifest, "feature_file", where);
  MIRABELLE_CHECK_DATA(file.is_null() == features.empty(), where, ": \"feature_file\" is ",
                       file.is_null() ? "null" : "given", ", \"features\" lists ", features.size());
  const int64_t bytes = file.is_null() ? 0 : check_file_entry(file, where + ": feature_file");
  for (const json& feature : features) {
    json_field<std::string>(feature, "name", where + ": features");
    check_room(count_of(feature, "dim", where + ": features"),
               bytes / static_cast<int64_t>(sizeof(float)) / std::max<int64_t>(1, items),
               where + ": features: dim");
  }
}

void check_shards(const json& manifest, const std::string& where) {
  const int64_t users = count_of(manifest, "users", where);
  const int64_t events = count_of(manifest, "events", where);
  int64_t users_sum = 0, events_sum = 0;
  constexpr int64_t kEnough = INT64_MAX / 2;  // the sums end here, so that they cannot overflow
  for (const json& shard : json_field<std::vector<json>>(manifest, "shards", where)) {
    const int64_t bytes = check_file_entry(shard, where + ": shards");
    const int64_t shard_users = count_of(shard, "users", where + ": shards");
    const int64_t shard_events = count_of(shard, "events", where + ": shards");
    check_room(shard_users, bytes / kShardBytesPerUser, where + ": shards: users");
    check_room(shard_events, bytes / kShardBytesPerEvent, where + ": shards: events");
    users_sum = std::min(users_sum + shard_users, kEnough);
    events_sum = std::min(events_sum + shard_events, kEnough);
  }
  MIRABELLE_CHECK_DATA(users_sum == users, where, ": the shards have ", users_sum,
                       " users, \"users\" is ", users);
  MIRABELLE_CHECK_DATA(events_sum == events, where, ": the shards have ", events_sum,
                       " events, \"events\" is ", events);
}

/// Everything that the other members rely on.
void check_manifest(const json& manifest, const std::string& where) {
  const auto schema = json_field<std::string>(manifest, "schema", where);
  MIRABELLE_CHECK_DATA(schema == "mirabelle-corpus", where, ": schema is \"", schema,
                       "\", wanted \"mirabelle-corpus\"");
  const int64_t version = count_of(manifest, "schema_version", where);
  MIRABELLE_CHECK_DATA(version == 1, where, ": schema version is ", version,
                       ", this program reads version 1; import the data again");
  for (const char* key : {"dataset", "split_hash"}) json_field<std::string>(manifest, key, where);
  check_split(manifest, where);
  json_field<std::vector<std::string>>(manifest, "event_columns", where);
  check_one_of(manifest, "user_id_type", {"integer", "string"}, where);
  check_one_of(manifest, "item_id_type", {"integer", "string"}, where);
  check_items(manifest, where);
  check_shards(manifest, where);
}

void check_bytes(const std::filesystem::path& folder, const json& entry) {
  const auto path = folder / entry["file"].get<std::string>();
  std::error_code error;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
  MIRABELLE_CHECK_DATA(!error, path.string(), ": cannot read: ", error.message());
  MIRABELLE_CHECK_DATA(bytes == entry["bytes"], path.string(), ": has ", bytes,
                       " bytes, the manifest says ", entry["bytes"].dump(),
                       " (truncated or replaced)");
}

json to_json_id(const std::string& id, const json& type) {
  if (type == "string") return id;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), value);
  MIRABELLE_CHECK_DATA(error == std::errc() && end == id.data() + id.size(), "ID \"", id,
                       "\" is not the integer that the manifest promises");
  return value;
}

/// The rows [begin, end) of a dataset that must have `expected_rows`.
template <typename T>
std::vector<T> read_range(const Hdf5File& file, const std::string& name, int64_t expected_rows,
                          int64_t begin, int64_t end) {
  const Shape shape = file.shape(name);
  MIRABELLE_CHECK_DATA(shape == Shape({expected_rows}), file.path().string(), ": dataset ", name,
                       ": has shape ", shape, ", the manifest says [", expected_rows, "]");
  std::vector<T> values(end - begin);
  file.read_rows(name, begin, view_of(values.data(), {end - begin}));
  return values;
}

}  // namespace

const char* to_string(Split split) { return split == Split::kTest ? "test" : "validation"; }

Split parse_split(const std::string& name) {
  if (name == "validation") return Split::kValidation;
  MIRABELLE_CHECK_USAGE(name == "test", "split is validation or test, not ", name);
  return Split::kTest;
}

Corpus::Corpus(const std::filesystem::path& folder, CorpusFiles with_files) : folder_(folder) {
  const auto path = folder / "manifest.json";
  MIRABELLE_CHECK_DATA(std::filesystem::exists(path), path.string(),
                       ": no such file; a corpus is a folder that mirabelle-data import writes");
  manifest_ = parse_json(read_text_file(path), path.string());
  check_manifest(manifest_, path.string());
  if (with_files == CorpusFiles::kChecked) check_files();
  first_users_.push_back(0);
  for (const json& shard : manifest_["shards"]) {
    first_users_.push_back(first_users_.back() + shard["users"].get<int64_t>());
  }
}

std::string Corpus::dataset() const { return manifest_["dataset"]; }
std::string Corpus::split_name() const { return manifest_["split"]["name"]; }
std::string Corpus::split_hash() const { return manifest_["split_hash"]; }
std::string Corpus::tie_policy() const { return manifest_["tie_policy"]["name"]; }
int64_t Corpus::num_users() const { return manifest_["users"]; }
int64_t Corpus::num_items() const { return manifest_["items"]; }
int64_t Corpus::num_events() const { return manifest_["events"]; }
int64_t Corpus::num_shards() const { return static_cast<int64_t>(first_users_.size()) - 1; }
bool Corpus::has_timestamps() const { return manifest_["has_timestamps"]; }
std::vector<std::string> Corpus::event_columns() const { return manifest_["event_columns"]; }

int64_t Corpus::shard_users(int64_t shard) const {
  return first_users_[shard + 1] - first_users_[shard];
}

int64_t Corpus::shard_first_user(int64_t shard) const { return first_users_[shard]; }

/// But for that of the features, which is compared when it is read: nothing else needs it once
/// there is a tokenizer.
void Corpus::check_files() const {
  check_bytes(folder_, manifest_["catalogue"]);
  for (const json& shard : manifest_["shards"]) check_bytes(folder_, shard);
}

Hdf5File Corpus::open_file(const json& entry) const {
  check_bytes(folder_, entry);
  return Hdf5File::open(folder_ / entry["file"].get<std::string>());
}

HistoryBlock Corpus::read_histories(int64_t shard, int64_t begin, int64_t end,
                                    bool with_timestamps) const {
  const int64_t users = shard_users(shard);
  const json& entry = manifest_["shards"][shard];
  const int64_t events = entry["events"];
  const Hdf5File file = open_file(entry);
  const std::string where = file.path().string();
  HistoryBlock block;
  block.first_user = shard_first_user(shard) + begin;
  block.offsets = read_range<int64_t>(file, "offsets", users + 1, begin, end + 1);
  const int64_t first_event = block.offsets.front();
  MIRABELLE_CHECK_DATA(first_event >= 0 && block.offsets.back() <= events &&
                           (begin > 0 || first_event == 0) &&
                           (end < users || block.offsets.back() == events),
                       where, ": dataset offsets: users [", begin, ", ", end, ") span events [",
                       first_event, ", ", block.offsets.back(), ") of ", events);
  for (int64_t user = begin; user < end; ++user) {
    const int64_t from = block.offsets[user - begin], to = block.offsets[user - begin + 1];
    MIRABELLE_CHECK_DATA(from <= to, where, ": dataset offsets: falls from ", from, " to ", to,
                         " at user ", user);
  }
  const int64_t end_event = block.offsets.back();
  for (int64_t& offset : block.offsets) offset -= first_event;
  block.items = read_range<int32_t>(file, "items", events, first_event, end_event);
  const int64_t num_items = this->num_items();
  for (size_t event = 0; event < block.items.size(); ++event) {
    MIRABELLE_CHECK_DATA(0 <= block.items[event] && block.items[event] < num_items, where,
                         ": dataset items: event ", first_event + static_cast<int64_t>(event),
                         " is of item number ", block.items[event], ", the catalogue has ",
                         num_items);
  }
  if (with_timestamps && has_timestamps()) {
    block.timestamps = read_range<int64_t>(file, "timestamps", events, first_event, end_event);
  }
  block.train_length = read_range<int32_t>(file, "train_length", users, begin, end);
  block.valid_length = read_range<int32_t>(file, "valid_length", users, begin, end);
  for (int64_t user = 0; user < block.num_users(); ++user) {
    const int64_t length = block.offsets[user + 1] - block.offsets[user];
    const int64_t train = block.train_length[user], valid = block.valid_length[user];
    MIRABELLE_CHECK_DATA(train >= 0 && valid >= 0 && train + valid <= length, where,
                         ": dataset train_length: user ", begin + user, " has ", train,
                         " training and ", valid, " validation events of ", length);
  }
  return block;
}

std::vector<int32_t> Corpus::read_train_lengths(int64_t shard, int64_t begin, int64_t end) const {
  const Hdf5File file = open_file(manifest_["shards"][shard]);
  const auto lengths = read_range<int32_t>(file, "train_length", shard_users(shard), begin, end);
  for (int32_t length : lengths) {
    MIRABELLE_CHECK_DATA(length >= 0, file.path().string(), ": dataset train_length: holds ",
                         length);
  }
  return lengths;
}

std::vector<float> Corpus::read_event_column(const std::string& name, int64_t shard, int64_t begin,
                                             int64_t end) const {
  const json& entry = manifest_["shards"][shard];
  const int64_t events = entry["events"];
  const Hdf5File file = open_file(entry);
  const auto offsets = read_range<int64_t>(file, "offsets", shard_users(shard) + 1, begin, end + 1);
  MIRABELLE_CHECK_DATA(
      0 <= offsets.front() && offsets.front() <= offsets.back() && offsets.back() <= events,
      file.path().string(), ": dataset offsets: spans [", offsets.front(), ", ", offsets.back(),
      ") of ", events, " events");
  return read_range<float>(file, "columns/" + name, events, offsets.front(), offsets.back());
}

std::string id_text(const json& id) { return id.is_string() ? id.get<std::string>() : id.dump(); }

json Corpus::item_id(int64_t item) const {
  if (item_ids_.empty()) {
    item_ids_ = open_file(manifest_["catalogue"]).read_strings("item_ids", 0, num_items());
  }
  return to_json_id(item_ids_.at(item), manifest_["item_id_type"]);
}

json Corpus::item_metadata(int64_t item) const {
  const Hdf5File file = open_file(manifest_["catalogue"]);
  return parse_json(
      file.read_strings("metadata", item, item + 1).front(),
      file.path().string() + ": dataset metadata: item number " + std::to_string(item));
}

std::vector<json> Corpus::read_user_ids(int64_t shard, int64_t begin, int64_t end) const {
  std::vector<json> ids;
  const Hdf5File file = open_file(manifest_["shards"][shard]);
  for (const std::string& id : file.read_strings("user_ids", begin, end)) {
    ids.push_back(to_json_id(id, manifest_["user_id_type"]));
  }
  return ids;
}

const std::vector<std::string>& Corpus::titles() const {
  if (titles_.empty()) {
    titles_ = open_file(manifest_["catalogue"]).read_strings("titles", 0, num_items());
  }
  return titles_;
}

std::vector<std::string> Corpus::feature_names() const {
  std::vector<std::string> names;
  for (const json& feature : manifest_["features"]) names.push_back(feature["name"]);
  return names;
}

int64_t Corpus::feature_dim(const std::string& name) const {
  for (const json& feature : manifest_["features"]) {
    if (feature["name"] == name) return feature["dim"];
  }
  std::string known;
  for (const std::string& other : feature_names()) known += (known.empty() ? "" : ", ") + other;
  throw_error(ErrorKind::kUsage, folder_.string(), ": has no feature ", name, "; it has ",
              known.empty() ? "none" : known);
}

void Corpus::read_features(const std::string& name, int64_t begin, int64_t end, float* out) const {
  const int64_t dim = feature_dim(name);
  const std::string dataset = "features/" + name;
  if (!feature_file_) {
    feature_file_ = std::make_shared<Hdf5File>(open_file(manifest_["feature_file"]));
  }
  const Shape shape = feature_file_->shape(dataset);
  MIRABELLE_CHECK_DATA(shape == Shape({num_items(), dim}), feature_file_->path().string(),
                       ": dataset ", dataset, ": has shape ", shape, ", the manifest says [",
                       num_items(), ", ", dim, "]");
  feature_file_->read_rows(dataset, begin, view_of(out, {end - begin, dim}));
}

}  // namespace mirabelle
