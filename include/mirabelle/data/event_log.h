#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mirabelle/data/corpus_writer.h"

namespace mirabelle {

/// A raw event log: text with a header line that names the columns, then one event per line, in any
/// order. Fields may be quoted as RFC 4180 has it; blank lines are skipped.
struct EventLogSource {
  std::filesystem::path events;
  std::string user_column, item_column, time_column;
  char delimiter = 0;  ///< 0: the first of tab, comma and semicolon that the header holds

  /// Optional: one JSON object per item, with its "item" (the ID) and perhaps a "title". An event
  /// of another item is then an error.
  std::filesystem::path items;
  /// Names and .npy files, [num_items + 1, dim], row i = line i of `items`, row 0 = zeros.
  std::vector<std::pair<std::string, std::filesystem::path>> features;

  /// Only users and items with so many events stay (the k-core: repeated until nothing changes).
  int64_t min_user_events = 1;
  int64_t min_item_events = 1;

  int64_t memory_bytes = int64_t{1} << 30;  ///< for sorting; items take memory of their own

  void check() const;  ///< kUsage Errors
};

struct EventLogSummary {
  int64_t events_read = 0;
  std::vector<std::string> kept_columns;     ///< stored as event columns
  std::vector<std::string> dropped_columns;  ///< not all numbers
  int64_t num_runs = 0;                      ///< sorted runs that went to the disk; 0: all fitted
};

/// Imports an event log as a corpus at `output`.
///   - A time is a number of seconds since 1970 or an ISO 8601 date (parse_time below).
///   - Users come in ascending order of their IDs, a user's events by time and then file order.
///   - Items are numbered in the order of `items`, which stays whole, or, without it, in ascending
///     order of the IDs that have events. Ascending means: integers by value, then all other IDs by
///     bytes.
///   - The other columns whose every value is a number or empty become event columns; empty = NaN.
/// Streams: sorted runs lie beside the output while it works, so that memory grows with the items
/// and the longest history only. Throws kData Errors that name file and line.
EventLogSummary import_event_log(const EventLogSource& source, const std::filesystem::path& output,
                                 const CorpusOptions& options);

/// Reads "1405555200", "1405555200.5", "2014-07-17", "2014-07-17T06:30", "2014-07-17 06:30:15.25Z"
/// or "2014-07-17T06:30:15+02:00" (no zone = UTC) as seconds since 1970. False for anything else.
bool parse_time(std::string_view text, double& seconds);

}  // namespace mirabelle
