#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "delimited_reader.h"
#include "mirabelle/data/event_log.h"

namespace mirabelle {

/// One line of an event log; the views last until the next one is read.
struct LoggedEvent {
  std::string_view user, item;  ///< valid IDs
  double time = 0;              ///< at least 0
  std::vector<float> values;    ///< of the other columns, in their order; NaN where not given
};

/// Reads an event log line by line. Throws kData Errors that name file and line.
class EventReader {
 public:
  /// Reads the header.
  explicit EventReader(const EventLogSource& source);

  bool next(LoggedEvent& event);
  std::string where() const { return lines_.where(); }
  double fraction_read() const { return lines_.fraction_read(); }

  const std::vector<std::string>& other_columns() const { return names_; }
  /// Whether every value of a further column so far was a number or not given, and some were.
  bool is_number(size_t column) const { return is_number_[column] && has_value_[column]; }

 private:
  size_t column(const std::string& name) const;
  void read_values(std::vector<float>& values);

  DelimitedReader lines_;
  size_t user_ = 0, item_ = 0, time_ = 0;
  std::vector<size_t> other_;  // all further columns of the file
  std::vector<std::string> names_;
  std::vector<bool> is_number_, has_value_;
  std::vector<std::string_view> fields_;
};

}  // namespace mirabelle
