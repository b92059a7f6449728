#include "event_reader.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "line_reader.h"
#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

constexpr double kMaxSeconds = 9.0e15;  // every integer up to here is a double

/// Takes `digits` decimal digits off the front of `text`.
bool take_digits(std::string_view& text, size_t digits, int& value) {
  value = 0;
  for (size_t i = 0; i < digits; ++i) {
    if (i >= text.size() || text[i] < '0' || text[i] > '9') return false;
    value = 10 * value + (text[i] - '0');
  }
  text.remove_prefix(digits);
  return true;
}

bool take(std::string_view& text, char wanted) {
  if (text.empty() || text.front() != wanted) return false;
  text.remove_prefix(1);
  return true;
}

/// hh:mm[:ss[.fraction]] off the front of `text`, as seconds.
bool take_time_of_day(std::string_view& text, double& seconds) {
  int hour = 0, minute = 0, second = 0;
  if (!take_digits(text, 2, hour) || !take(text, ':') || !take_digits(text, 2, minute))
    return false;
  double fraction = 0;
  if (take(text, ':')) {
    if (!take_digits(text, 2, second)) return false;
    if (take(text, '.')) {
      double unit = 0.1;
      for (int digit = 0; take_digits(text, 1, digit); unit /= 10) fraction += unit * digit;
    }
  }
  seconds = 3600 * hour + 60 * minute + second + fraction;
  return hour < 24 && minute < 60 && second <= 60;  // 60: a leap second
}

/// Z, +hh:mm or -hh:mm off the front of `text`, as seconds east of UTC; nothing = UTC.
bool take_zone(std::string_view& text, double& seconds) {
  seconds = 0;
  if (text.empty() || take(text, 'Z')) return true;
  const int sign = text.front() == '+' ? 1 : text.front() == '-' ? -1 : 0;
  text.remove_prefix(1);
  int hour = 0, minute = 0;
  if (sign == 0 || !take_digits(text, 2, hour)) return false;
  take(text, ':');
  if (!take_digits(text, 2, minute)) return false;
  seconds = sign * (3600 * hour + 60 * minute);
  return true;
}

}  // namespace

EventReader::EventReader(const EventLogSource& source) : lines_(source.events, source.delimiter) {
  user_ = column(source.user_column);
  item_ = column(source.item_column);
  time_ = column(source.time_column);
  for (size_t i = 0; i < lines_.header().size(); ++i) {
    if (i == user_ || i == item_ || i == time_) continue;
    other_.push_back(i);
    names_.push_back(lines_.header()[i]);
  }
  is_number_.assign(other_.size(), true);
  has_value_.assign(other_.size(), false);
}

size_t EventReader::column(const std::string& name) const {
  const auto& header = lines_.header();
  const auto found = std::find(header.begin(), header.end(), name);
  std::string known;
  for (const std::string& other : header) known += (known.empty() ? "" : ", ") + other;
  MIRABELLE_CHECK_DATA(found != header.end(), where(), ": has no column \"", name,
                       "\"; the header names ", known);
  return found - header.begin();
}

bool EventReader::next(LoggedEvent& event) {
  if (!lines_.next(fields_)) return false;
  event.user = fields_[user_];
  event.item = fields_[item_];
  MIRABELLE_CHECK_DATA(is_valid_id(event.user), where(),
                       ": the user ID is empty or holds control characters");
  MIRABELLE_CHECK_DATA(is_valid_id(event.item), where(),
                       ": the item ID is empty or holds control characters");
  MIRABELLE_CHECK_DATA(
      parse_time(fields_[time_], event.time) && 0 <= event.time && event.time <= kMaxSeconds,
      where(), ": time \"", fields_[time_], "\", wanted seconds since 1970 or an ISO 8601 date");
  event.time += 0.0;  // "-0" is 0
  read_values(event.values);
  return true;
}

void EventReader::read_values(std::vector<float>& values) {
  values.assign(other_.size(), std::numeric_limits<float>::quiet_NaN());
  for (size_t i = 0; i < other_.size(); ++i) {
    const std::string_view text = fields_[other_[i]];
    if (!is_number_[i] || text.empty()) continue;
    float value = 0;
    is_number_[i] = parse_number(text, value) && std::isfinite(value);
    has_value_[i] = true;
    values[i] = value;
  }
}

bool parse_time(std::string_view text, double& seconds) {
  if (parse_number(text, seconds)) return std::isfinite(seconds);
  int year = 0, month = 0, day = 0;
  if (!take_digits(text, 4, year) || !take(text, '-') || !take_digits(text, 2, month) ||
      !take(text, '-') || !take_digits(text, 2, day)) {
    return false;
  }
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month),
                                         std::chrono::day(day)};
  if (!date.ok()) return false;
  double time_of_day = 0, zone = 0;
  if (take(text, 'T') || take(text, ' ')) {
    if (!take_time_of_day(text, time_of_day) || !take_zone(text, zone)) return false;
  }
  const auto days = std::chrono::sys_days(date).time_since_epoch().count();
  seconds = 86400.0 * static_cast<double>(days) + time_of_day - zone;
  return text.empty();
}

}  // namespace mirabelle
