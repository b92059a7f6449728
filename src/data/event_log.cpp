#include "mirabelle/data/event_log.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "catalogue_import.h"
#include "event_reader.h"
#include "external_sorter.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kEventsBetweenProgress = 1 << 18;

/// Items by ID, numbered in order of first appearance.
class ItemTable {
 public:
  int32_t find(std::string_view id) const {
    const auto found = numbers_.find(id);
    return found == numbers_.end() ? -1 : found->second;
  }
  int32_t add(std::string_view id) {
    MIRABELLE_CHECK_DATA(ids_.size() < INT32_MAX, "more than ", INT32_MAX, " items");
    const auto number = static_cast<int32_t>(ids_.size());
    ids_.push_back(&numbers_.emplace(id, number).first->first);
    return number;
  }
  int64_t size() const { return static_cast<int64_t>(ids_.size()); }
  const std::string& id(int64_t number) const { return *ids_[number]; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view id) const { return std::hash<std::string_view>()(id); }
  };
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> numbers_;
  std::vector<const std::string*> ids_;  // keys of the map stay where they are
};

/// An ID as bytes that sort integers by value and before all other IDs, and end themselves.
void append_id(std::vector<char>& bytes, std::string_view id) {
  int64_t value = 0;
  if (is_plain_integer(id) && parse_number(id, value)) {
    bytes.push_back(1);
    append_ascending(bytes, value);
  } else {
    bytes.push_back(2);
    bytes.insert(bytes.end(), id.begin(), id.end());
    bytes.push_back(0);
  }
}

/// Takes an ID off the front of what append_id wrote.
std::string_view take_id_bytes(std::string_view& record) {
  const size_t size = record[0] == 1 ? 9 : record.find('\0') + 1;
  const std::string_view bytes = record.substr(0, size);
  record.remove_prefix(size);
  return bytes;
}

std::string id_of(std::string_view bytes) {
  return bytes[0] == 1 ? std::to_string(read_ascending(bytes.data() + 1))
                       : std::string(bytes.substr(1, bytes.size() - 2));
}

/// The sort record of one event: user, time, place in the file; then what is carried along.
struct EventRecord {
  double time;
  int32_t item;

  static void append(std::vector<char>& record, double time, int64_t place, int32_t item,
                     const std::vector<float>& values) {
    append_ascending(record, std::bit_cast<int64_t>(time));  // ascends, since times are >= 0
    append_ascending(record, place);
    const auto* carried = reinterpret_cast<const char*>(&item);
    record.insert(record.end(), carried, carried + sizeof item);
    carried = reinterpret_cast<const char*>(values.data());
    record.insert(record.end(), carried, carried + values.size() * sizeof(float));
  }
  static EventRecord read(std::string_view record, std::vector<float>& values) {
    EventRecord event{std::bit_cast<double>(read_ascending(record.data())), 0};
    std::memcpy(&event.item, record.data() + 16, sizeof event.item);
    std::copy_n(record.data() + 20, values.size() * sizeof(float),
                reinterpret_cast<char*>(values.data()));
    return event;
  }
};

class EventLogImport {
 public:
  EventLogImport(const EventLogSource& source, const fs::path& output, const CorpusOptions& options)
      : source_(source),
        options_(options),
        output_(output),
        runs_(output.string() + ".runs"),
        reader_(source),
        sorter_(runs_.path(), source.memory_bytes) {}

  EventLogSummary run() {
    if (!source_.items.empty()) read_item_ids();
    read_events();
    item_stays_.assign(items_.size(), true);
    if (source_.min_user_events > 1 || source_.min_item_events > 1) find_core();
    write();
    summary_.num_runs = sorter_.num_runs();
    return summary_;
  }

 private:
  void read_item_ids() {
    read_catalogue(source_.items, [&](const CatalogueItem& item, const std::string& where) {
      MIRABELLE_CHECK_DATA(items_.find(item.id) < 0, where, ": item ", item.id,
                           " has come before, in line ", items_.find(item.id) + 1);
      items_.add(item.id);
    });
  }

  int32_t item_number(std::string_view id) {
    const int32_t known = items_.find(id);
    if (known >= 0) return known;
    MIRABELLE_CHECK_DATA(source_.items.empty(), reader_.where(), ": item ", id, " is not in ",
                         source_.items.string());
    return items_.add(id);
  }

  void read_events() {
    LoggedEvent event;
    std::vector<char> record;
    while (reader_.next(event)) {
      const int32_t item = item_number(event.item);
      record.clear();
      append_id(record, event.user);
      EventRecord::append(record, event.time, summary_.events_read, item, event.values);
      sorter_.add({record.data(), record.size()});
      if (++summary_.events_read % kEventsBetweenProgress == 0 && options_.progress) {
        options_.progress(summary_.events_read, reader_.fraction_read() / 2);
      }
    }
    MIRABELLE_CHECK_DATA(summary_.events_read > 0, source_.events.string(),
                         ": has no events after the header");
    const std::vector<std::string>& names = reader_.other_columns();
    for (size_t i = 0; i < names.size(); ++i) {
      const bool kept = reader_.is_number(i);
      (kept ? summary_.kept_columns : summary_.dropped_columns).push_back(names[i]);
      if (kept) kept_.push_back(i);
    }
    values_.resize(names.size());
  }

  /// Calls visit(user ID bytes, its events' records) for every user.
  template <typename Visit>
  void for_each_user(const Visit& visit) {
    std::string user;
    std::vector<EventRecord> events;
    std::vector<std::vector<float>> columns(kept_.size());
    const auto flush = [&] {
      if (!events.empty()) visit(user, events, columns);
      events.clear();
      for (auto& column : columns) column.clear();
    };
    sorter_.for_each([&](std::string_view record) {
      const std::string_view id = take_id_bytes(record);
      if (id != user) {
        flush();
        user = id;
      }
      const EventRecord event = EventRecord::read(record, values_);
      if (!item_stays_[event.item]) return;
      events.push_back(event);
      for (size_t i = 0; i < kept_.size(); ++i) columns[i].push_back(values_[kept_[i]]);
    });
    flush();
  }

  bool user_stays(const std::vector<EventRecord>& events) const {
    return static_cast<int64_t>(events.size()) >= source_.min_user_events;
  }

  /// The largest set of users and items that all have enough events among each other. Whether a
  /// user stays follows from the items that stay, so only the items are remembered.
  void find_core() {
    for (bool changed = true; changed;) {
      std::vector<int64_t> count(items_.size(), 0);
      for_each_user([&](const auto&, const std::vector<EventRecord>& events, const auto&) {
        if (!user_stays(events)) return;
        for (const EventRecord& event : events) ++count[event.item];
      });
      changed = false;
      for (int64_t item = 0; item < items_.size(); ++item) {
        const bool stays = item_stays_[item] && count[item] >= source_.min_item_events;
        changed = changed || stays != item_stays_[item];
        item_stays_[item] = stays;
      }
    }
  }

  /// Adds the items to the corpus. Returns the corpus' number of each.
  std::vector<int32_t> write_items(CorpusWriter& writer) {
    std::vector<int32_t> number(items_.size(), -1);
    if (!source_.items.empty()) {
      read_catalogue(source_.items, [&](const CatalogueItem& item, const std::string&) {
        writer.add_item(item.id, item.title, item.metadata);
      });
      for (int64_t item = 0; item < items_.size(); ++item)
        number[item] = static_cast<int32_t>(item);
      for (const auto& [name, path] : source_.features) import_features(path, name, writer);
      return number;
    }
    std::vector<std::pair<std::string, int32_t>> order;
    std::vector<char> bytes;
    for (int64_t item = 0; item < items_.size(); ++item) {
      if (!item_stays_[item]) continue;
      bytes.clear();
      append_id(bytes, items_.id(item));
      order.emplace_back(std::string(bytes.begin(), bytes.end()), static_cast<int32_t>(item));
    }
    std::sort(order.begin(), order.end());
    for (const auto& [key, item] : order) {
      number[item] = static_cast<int32_t>(writer.num_items());
      writer.add_item(items_.id(item));
    }
    return number;
  }

  void write() {
    CorpusWriter writer(output_, options_, true, summary_.kept_columns);
    const std::vector<int32_t> number = write_items(writer);
    UserHistory history;
    int64_t next_progress = kEventsBetweenProgress;
    for_each_user([&](const std::string& user, const std::vector<EventRecord>& events,
                      const std::vector<std::vector<float>>& columns) {
      if (!user_stays(events)) return;
      history.id = id_of(user);
      history.items.clear();
      history.timestamps.clear();
      for (const EventRecord& event : events) {
        history.items.push_back(number[event.item]);
        history.timestamps.push_back(static_cast<int64_t>(event.time));
      }
      history.columns = columns;
      writer.add_user(history);
      if (writer.num_events() < next_progress || !options_.progress) return;
      next_progress = writer.num_events() + kEventsBetweenProgress;
      options_.progress(writer.num_events(), 0.5 + 0.5 * static_cast<double>(writer.num_events()) /
                                                       static_cast<double>(summary_.events_read));
    });
    MIRABELLE_CHECK_DATA(writer.num_users() > 0, source_.events.string(), ": no user has ",
                         source_.min_user_events, " events of items that have ",
                         source_.min_item_events);
    if (options_.progress) options_.progress(writer.num_events(), 1.0);
    writer.finish();
  }

  const EventLogSource& source_;
  const CorpusOptions& options_;
  fs::path output_;
  AtomicPath runs_;  // never committed, so removed at the end
  EventReader reader_;
  ExternalSorter sorter_;
  ItemTable items_;
  std::vector<bool> item_stays_;

  std::vector<size_t> kept_;   // those of the further columns that are stored
  std::vector<float> values_;  // of one event's further columns
  EventLogSummary summary_;
};

}  // namespace

void EventLogSource::check() const {
  MIRABELLE_CHECK_USAGE(!user_column.empty() && !item_column.empty() && !time_column.empty(),
                        "an event log wants the names of its user, item and time columns");
  MIRABELLE_CHECK_USAGE(
      user_column != item_column && item_column != time_column && user_column != time_column,
      "user, item and time are three columns, not ", user_column, ", ", item_column, ", ",
      time_column);
  MIRABELLE_CHECK_USAGE(features.empty() || !items.empty(),
                        "features want an items file, whose order their rows have");
  MIRABELLE_CHECK_USAGE(min_user_events >= 1 && min_item_events >= 1,
                        "the least numbers of events are at least 1, not ", min_user_events,
                        " and ", min_item_events);
  MIRABELLE_CHECK_USAGE(memory_bytes >= 1 << 20, "sorting wants at least 1 MiB of memory, not ",
                        memory_bytes, " bytes");
}

EventLogSummary import_event_log(const EventLogSource& source, const fs::path& output,
                                 const CorpusOptions& options) {
  source.check();
  options.check();
  return EventLogImport(source, output, options).run();
}

}  // namespace mirabelle
