#include "mirabelle/data/dataset_folder.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "catalogue_import.h"
#include "line_reader.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/data/npy.h"
#include "unique_ids.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kUsersBetweenProgress = 4096;

/// The files of a folder that end in `extension`, by name.
std::vector<fs::path> files_in(const fs::path& folder, const std::string& extension) {
  std::vector<fs::path> found;
  if (!fs::is_directory(folder)) return found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == extension) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

int64_t parse_item(std::string_view word, const LineReader& lines) {
  int64_t item = 0;
  MIRABELLE_CHECK_DATA(parse_number(word, item) && item >= 1, lines.where(), ": item \"", word,
                       "\", wanted an integer of at least 1");
  MIRABELLE_CHECK_DATA(item <= INT32_MAX, lines.where(), ": item ", item, " is above ", INT32_MAX);
  return item;
}

int64_t largest_item(const fs::path& sequences) {
  LineReader lines(sequences);
  std::string_view line;
  int64_t largest = 0;
  while (lines.next(line)) {
    take_word(line);
    for (std::string_view word = take_word(line); !word.empty(); word = take_word(line)) {
      largest = std::max(largest, parse_item(word, lines));
    }
  }
  return largest;
}

void add_catalogue(const fs::path& source, const std::vector<fs::path>& features,
                   CorpusWriter& writer) {
  if (fs::exists(source / "items.jsonl")) {
    read_catalogue(source / "items.jsonl",
                   [&](const CatalogueItem& item, const std::string& where) {
                     const std::string wanted = std::to_string(writer.num_items() + 1);
                     MIRABELLE_CHECK_DATA(item.id == wanted, where, ": \"item\" is ", item.id,
                                          ", wanted ", wanted, " (items are sorted, from 1)");
                     writer.add_item(item.id, item.title, item.metadata);
                   });
    return;
  }
  const int64_t num_items = features.empty() ? largest_item(source / "sequences.txt")
                                             : NpyReader(features.front()).num_rows() - 1;
  for (int64_t item = 1; item <= num_items; ++item) {
    const std::string id = std::to_string(item);
    writer.add_item(id, "", "{\"item\": " + id + "}");
  }
}

/// Reads the files of sequences.txt's shape side by side.
class EventFiles {
 public:
  EventFiles(const fs::path& source, bool has_timestamps, const std::vector<fs::path>& columns)
      : sequences_(source / "sequences.txt") {
    if (has_timestamps) timestamps_.emplace(source / "timestamps.txt");
    for (const fs::path& path : columns) columns_.emplace_back(path);
  }

  /// The next user; false at the end, which all files must have at the same line.
  bool next(UserHistory& history, int64_t num_items) {
    std::string_view line;
    if (!sequences_.next(line)) {
      if (timestamps_) check_end(*timestamps_);
      for (LineReader& column : columns_) check_end(column);
      return false;
    }
    history.source = sequences_.where();
    history.id = take_word(line);
    MIRABELLE_CHECK_DATA(!history.id.empty(), history.source,
                         ": is blank, wanted a user ID and items");
    history.items.clear();
    for (std::string_view word = take_word(line); !word.empty(); word = take_word(line)) {
      const int64_t item = parse_item(word, sequences_);
      MIRABELLE_CHECK_DATA(item <= num_items, history.source, ": item ", item,
                           " is not in the catalogue of ", num_items, " items");
      history.items.push_back(static_cast<int32_t>(item - 1));
    }
    MIRABELLE_CHECK_DATA(!history.items.empty(), history.source, ": user ", history.id,
                         " has no items");
    if (timestamps_) {
      read_values(*timestamps_, history, history.timestamps, "a time in seconds or -1",
                  [](int64_t time) { return time >= -1; });
    }
    history.columns.resize(columns_.size());
    for (size_t i = 0; i < columns_.size(); ++i) {
      read_values(columns_[i], history, history.columns[i], "a finite number",
                  [](float value) { return std::isfinite(value); });
    }
    return true;
  }
  double fraction_read() const { return sequences_.fraction_read(); }

 private:
  template <typename T, typename Accept>
  void read_values(LineReader& file, const UserHistory& history, std::vector<T>& values,
                   const char* wanted, const Accept& accept) {
    std::string_view line;
    MIRABELLE_CHECK_DATA(file.next(line), file.path().string(), ": ends after line ",
                         file.line_number(), ", ", history.source, " has no counterpart");
    const std::string_view id = take_word(line);
    MIRABELLE_CHECK_DATA(id == history.id, file.where(), ": is of user \"", id, "\", ",
                         history.source, " of user \"", history.id, "\"");
    values.clear();
    for (std::string_view word = take_word(line); !word.empty(); word = take_word(line)) {
      T value{};
      MIRABELLE_CHECK_DATA(parse_number(word, value) && accept(value), file.where(), ": value ",
                           values.size() + 1, " is \"", word, "\", wanted ", wanted);
      values.push_back(value);
    }
    MIRABELLE_CHECK_DATA(values.size() == history.items.size(), file.where(), ": has ",
                         values.size(), " values, ", history.source, " has ", history.items.size(),
                         " items");
  }
  void check_end(LineReader& file) const {
    std::string_view line;
    MIRABELLE_CHECK_DATA(!file.next(line), file.where(), ": sequences.txt has only ",
                         sequences_.line_number(), " lines");
  }

  LineReader sequences_;
  std::optional<LineReader> timestamps_;
  std::vector<LineReader> columns_;
};

}  // namespace

void import_dataset_folder(const fs::path& source, const fs::path& output,
                           const CorpusOptions& options) {
  const fs::path sequences = source / "sequences.txt";
  MIRABELLE_CHECK_DATA(fs::is_directory(source), source.string(), ": no such folder");
  MIRABELLE_CHECK_DATA(fs::exists(sequences), sequences.string(), ": no such file");
  std::vector<fs::path> columns = files_in(source, ".txt");
  const bool has_timestamps = fs::exists(source / "timestamps.txt");
  std::erase_if(columns, [](const fs::path& path) {
    return path.filename() == "sequences.txt" || path.filename() == "timestamps.txt";
  });
  std::vector<std::string> column_names;
  for (const fs::path& path : columns) column_names.push_back(path.stem().string());

  CorpusWriter writer(output, options, has_timestamps, column_names);
  const std::vector<fs::path> features = files_in(source / "features", ".npy");
  add_catalogue(source, features, writer);
  for (const fs::path& path : features) import_features(path, path.stem().string(), writer);

  const AtomicPath runs(output.string() + ".runs");  // never committed, so removed at the end
  UniqueIds user_ids(runs.path());
  EventFiles events(source, has_timestamps, columns);
  UserHistory history;
  while (events.next(history, writer.num_items())) {
    writer.add_user(history);
    user_ids.add(history.id, writer.num_users());
    if (options.progress && writer.num_users() % kUsersBetweenProgress == 0) {
      options.progress(writer.num_events(), events.fraction_read());
    }
  }
  MIRABELLE_CHECK_DATA(writer.num_users() > 0, sequences.string(),
                       ": is empty, wanted one user per line");
  user_ids.for_each_repeated([&](std::string_view id, int64_t first, int64_t second) {
    throw_error(ErrorKind::kData, sequences.string(), ":", second, ": user ", id,
                " has come before, in line ", first);
  });
  if (options.progress) options.progress(writer.num_events(), 1.0);
  writer.finish();
}

}  // namespace mirabelle
