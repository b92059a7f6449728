#include "mirabelle/data/corpus.h"

#include <charconv>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
namespace {

using nlohmann::json;

/// A manifest's value, or an Error that names it.
template <typename T>
T get(const json& object, const char* key, const std::string& where) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  MIRABELLE_CHECK_DATA(object.is_object() && found != object.end(), where, ": \"", key,
                       "\" is missing");
  try {
    const T value = found->get<T>();
    if constexpr (std::is_same_v<T, int64_t>) {
      MIRABELLE_CHECK_DATA(found->is_number_integer() && value >= 0, where, ": \"", key, "\" is ",
                           found->dump(), ", wanted an integer of at least 0");
    }
    return value;
  } catch (const json::exception&) {
    throw_error(ErrorKind::kData, where, ": \"", key, "\" is ", found->dump(),
                ", which is of another type than wanted");
  }
}

void check_one_of(const json& object, const char* key, const std::vector<std::string>& choices,
                  const std::string& where) {
  const auto value = get<std::string>(object, key, where);
  for (const std::string& choice : choices) {
    if (value == choice) return;
  }
  throw_error(ErrorKind::kData, where, ": \"", key, "\" is \"", value, "\", wanted \"",
              choices.front(), "\" or \"", choices.back(), '"');
}

void check_file_entry(const json& entry, const std::string& where) {
  get<int64_t>(entry, "bytes", where);
  get<std::string>(entry, "sha256", where);
  const auto name = get<std::string>(entry, "file", where);
  MIRABELLE_CHECK_DATA(!name.empty() && name.find('/') == std::string::npos, where,
                       ": \"file\" is \"", name, "\", wanted a name within the folder");
}

/// Everything that the other members rely on.
void check_manifest(const json& manifest, const std::string& where) {
  const auto schema = get<std::string>(manifest, "schema", where);
  MIRABELLE_CHECK_DATA(schema == "mirabelle-corpus", where, ": schema is \"", schema,
                       "\", wanted \"mirabelle-corpus\"");
  const auto version = get<int64_t>(manifest, "schema_version", where);
  MIRABELLE_CHECK_DATA(version == 1, where, ": schema version is ", version,
                       ", this program reads version 1; import the data again");
  for (const char* key : {"dataset", "split_hash"}) get<std::string>(manifest, key, where);
  for (const char* key : {"users", "items", "events"}) get<int64_t>(manifest, key, where);
  const auto split = get<json>(manifest, "split", where);
  check_one_of(split, "name", {"leave_one_out", "time"}, where + ": split");
  if (split["name"] == "time") {
    for (const char* key : {"valid_from", "test_from"}) {
      MIRABELLE_CHECK_DATA(split.contains(key) && split[key].is_number_integer(), where,
                           ": split: \"", key, "\" is missing or no integer");
    }
  }
  check_one_of(get<json>(manifest, "tie_policy", where), "name", {"file", "shuffle"},
               where + ": tie_policy");
  const bool has_timestamps = get<bool>(manifest, "has_timestamps", where);
  MIRABELLE_CHECK_DATA(split["name"] != "time" || has_timestamps, where,
                       ": a time split, but has_timestamps is false");
  get<std::vector<std::string>>(manifest, "event_columns", where);
  check_one_of(manifest, "user_id_type", {"integer", "string"}, where);
  check_one_of(manifest, "item_id_type", {"integer", "string"}, where);
  for (const json& feature : get<std::vector<json>>(manifest, "features", where)) {
    get<std::string>(feature, "name", where + ": features");
    get<int64_t>(feature, "dim", where + ": features");
  }
  check_file_entry(get<json>(manifest, "catalogue", where), where + ": catalogue");
  const auto feature_file = get<json>(manifest, "feature_file", where);
  MIRABELLE_CHECK_DATA(feature_file.is_null() == manifest["features"].empty(), where,
                       ": \"feature_file\" is ", feature_file.is_null() ? "null" : "given",
                       ", \"features\" lists ", manifest["features"].size());
  if (!feature_file.is_null()) check_file_entry(feature_file, where + ": feature_file");
  int64_t users = 0, events = 0;
  for (const json& shard : get<std::vector<json>>(manifest, "shards", where)) {
    check_file_entry(shard, where + ": shards");
    users += get<int64_t>(shard, "users", where + ": shards");
    events += get<int64_t>(shard, "events", where + ": shards");
  }
  MIRABELLE_CHECK_DATA(users == manifest["users"], where, ": the shards have ", users,
                       " users, \"users\" is ", manifest["users"].dump());
  MIRABELLE_CHECK_DATA(events == manifest["events"], where, ": the shards have ", events,
                       " events, \"events\" is ", manifest["events"].dump());
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

Corpus::Corpus(const std::filesystem::path& folder) : folder_(folder) {
  const auto path = folder / "manifest.json";
  MIRABELLE_CHECK_DATA(std::filesystem::exists(path), path.string(),
                       ": no such file; a corpus is a folder that mirabelle-data import writes");
  try {
    manifest_ = json::parse(read_text_file(path));
  } catch (const json::exception& error) {
    throw_error(ErrorKind::kData, path.string(), ": malformed JSON: ", error.what());
  }
  check_manifest(manifest_, path.string());
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

Hdf5File Corpus::open_file(const json& entry) const {
  const auto path = folder_ / entry["file"].get<std::string>();
  std::error_code error;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
  MIRABELLE_CHECK_DATA(!error, path.string(), ": cannot read: ", error.message());
  MIRABELLE_CHECK_DATA(bytes == entry["bytes"], path.string(), ": has ", bytes,
                       " bytes, the manifest says ", entry["bytes"].dump(),
                       " (truncated or replaced)");
  return Hdf5File::open(path);
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
  try {
    return json::parse(file.read_strings("metadata", item, item + 1).front());
  } catch (const json::exception& error) {
    throw_error(ErrorKind::kData, file.path().string(), ": dataset metadata: item number ", item,
                ": malformed JSON: ", error.what());
  }
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
