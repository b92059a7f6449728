#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mirabelle {

/// Visits the fields of a configuration struct. A struct lists its fields once, in
/// `void visit(ConfigFields& fields)`, with name and meaning; reading YAML, applying --set,
/// printing the result and --help all walk that list. A field's initial value is its default.
class ConfigFields {
 public:
  virtual ~ConfigFields() = default;
  virtual void field(const char* name, bool& value, const char* meaning) = 0;
  virtual void field(const char* name, int64_t& value, const char* meaning) = 0;
  virtual void field(const char* name, double& value, const char* meaning) = 0;
  virtual void field(const char* name, std::string& value, const char* meaning) = 0;
  virtual void field(const char* name, std::vector<int64_t>& value, const char* meaning) = 0;
  virtual void field(const char* name, std::vector<double>& value, const char* meaning) = 0;
  virtual void field(const char* name, std::vector<std::string>& value, const char* meaning) = 0;
};

}  // namespace mirabelle
