#include "mirabelle/core/json.h"

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kShownBytes = 100;

/// "line 3, column 7" of a byte.
std::string position(std::string_view text, size_t byte) {
  const std::string_view before = text.substr(0, byte);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t line_begin = before.rfind('\n') + 1;  // npos + 1 = 0
  return "line " + std::to_string(line) + ", column " +
         std::to_string(std::max<size_t>(1, before.size() - line_begin));
}

/// The parser's reason without its code and position, which we write ourselves, and without what it
/// has read last, which may be long.
std::string reason_of(const json::parse_error& error) {
  std::string reason = error.what();
  const size_t place = reason.find(", column ");
  const size_t colon = place == std::string::npos ? place : reason.find(": ", place);
  if (colon != std::string::npos) reason.erase(0, colon + 2);
  return reason.substr(0, reason.find("; last read"));
}

bool take(const json& value, bool& out) {
  if (value.is_boolean()) out = value.get<bool>();
  return value.is_boolean();
}

bool take(const json& value, int64_t& out) {
  const bool fits =
      value.is_number_unsigned() ? value.get<uint64_t>() <= INT64_MAX : value.is_number_integer();
  if (fits) out = value.get<int64_t>();
  return fits;
}

bool take(const json& value, double& out) {
  if (value.is_number()) out = value.get<double>();
  return value.is_number();
}

bool take(const json& value, std::string& out) {
  if (value.is_string()) out = value.get<std::string>();
  return value.is_string();
}

bool take(const json& value, json& out) {
  out = value;
  return true;
}

template <typename T>
bool take(const json& value, std::vector<T>& out) {
  if (!value.is_array()) return false;
  out.resize(value.size());
  return std::equal(value.begin(), value.end(), out.begin(),
                    [](const json& from, T& to) { return take(from, to); });
}

const char* wanted(bool) { return "true or false"; }
const char* wanted(int64_t) { return "an integer"; }
const char* wanted(double) { return "a number"; }
const char* wanted(const std::string&) { return "a string"; }
const char* wanted(const json&) { return "a value"; }
const char* wanted(const std::vector<int64_t>&) { return "a list of integers"; }
const char* wanted(const std::vector<double>&) { return "a list of numbers"; }
const char* wanted(const std::vector<std::string>&) { return "a list of strings"; }
const char* wanted(const std::vector<json>&) { return "a list"; }

}  // namespace

json parse_json(std::string_view text, const std::string& where) {
  std::vector<std::set<std::string>> open;  // objects and arrays around, and the keys they have
  const auto check = [&](int, json::parse_event_t event, json& parsed) {
    using Event = json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      open.emplace_back();
      MIRABELLE_CHECK_DATA(open.size() <= kMaxDepth, where, ": JSON nested deeper than ",
                           kMaxDepth);
    } else if (event == Event::object_end || event == Event::array_end) {
      open.pop_back();
    } else if (event == Event::key) {
      MIRABELLE_CHECK_DATA(open.back().insert(parsed.get<std::string>()).second, where,
                           ": the key ", shown(parsed), " is given twice in an object");
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::parse_error& error) {
    throw_error(ErrorKind::kData, where, ": malformed JSON at ", position(text, error.byte), ": ",
                reason_of(error));
  } catch (const json::out_of_range&) {
    throw_error(ErrorKind::kData, where, ": malformed JSON: a number too large for a double");
  }
}

template <typename T>
T json_value(const json& value, const std::string& where) {
  T result{};
  MIRABELLE_CHECK_DATA(take(value, result), where, " is ", shown(value), ", wanted ",
                       wanted(result));
  return result;
}

template <typename T>
T json_field(const json& object, const std::string& key, const std::string& where) {
  MIRABELLE_CHECK_DATA(object.is_object(), where, ": is ", shown(object),
                       ", wanted an object with \"", key, "\"");
  const auto found = object.find(key);
  MIRABELLE_CHECK_DATA(found != object.end(), where, ": \"", key, "\" is missing");
  return json_value<T>(*found, where + ": \"" + key + "\"");
}

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() <= kShownBytes) return text;
  size_t end = kShownBytes;
  while (end > 0 && (text[end] & 0xC0) == 0x80) --end;  // not within a UTF-8 character
  return text.substr(0, end) + "...";
}

#define MIRABELLE_INSTANTIATE(T)                                         \
  template T json_value<T>(const json& value, const std::string& where); \
  template T json_field<T>(const json& object, const std::string& key, const std::string& where)
MIRABELLE_INSTANTIATE(bool);
MIRABELLE_INSTANTIATE(int64_t);
MIRABELLE_INSTANTIATE(double);
MIRABELLE_INSTANTIATE(std::string);
MIRABELLE_INSTANTIATE(json);
MIRABELLE_INSTANTIATE(std::vector<int64_t>);
MIRABELLE_INSTANTIATE(std::vector<double>);
MIRABELLE_INSTANTIATE(std::vector<std::string>);
MIRABELLE_INSTANTIATE(std::vector<json>);
#undef MIRABELLE_INSTANTIATE

}  // namespace mirabelle
