#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mirabelle {

/// Reads one JSON value from text that anybody may have written. Throws a kData Error, one line
/// that begins with `where`, for what is not JSON, for bad UTF-8, for a key that an object has
/// twice, for numbers beyond a double's range, and for values nested deeper than 64.
nlohmann::json parse_json(std::string_view text, const std::string& where);

/// `value` as a T, converted from no other type: 1.5 and 2^63 are no int64_t, and true is no
/// number. T: bool, int64_t, double, std::string, nlohmann::json, or a std::vector of one of them
/// but bool. Throws a kData Error that begins with `where`.
template <typename T>
T json_value(const nlohmann::json& value, const std::string& where);

/// json_value() of an object's key. Throws also if `object` is no object, or lacks the key.
template <typename T>
T json_field(const nlohmann::json& object, const std::string& key, const std::string& where);

/// The same, or `missing` if the object lacks the key.
template <typename T>
T json_field_or(const nlohmann::json& object, const std::string& key, const std::string& where,
                const T& missing) {
  const bool lacks_key = object.is_object() && !object.contains(key);
  return lacks_key ? missing : json_field<T>(object, key, where);
}

/// A value as JSON for a message: one line, cut where it grows long.
std::string shown(const nlohmann::json& value);

}  // namespace mirabelle
