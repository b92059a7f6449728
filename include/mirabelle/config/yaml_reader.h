#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "mirabelle/core/config_fields.h"

namespace mirabelle {

/// One section of the configuration file: its name, the list of its fields, its validation. The
/// section without a name holds the keys of the outermost level.
struct ConfigSection {
  std::string name;
  std::function<void(ConfigFields&)> visit;
  std::function<void()> check;
};

/// The section that a struct with `visit(ConfigFields&)` and `check() const` makes. `values` must
/// outlive it.
template <typename Values>
ConfigSection config_section(std::string name, Values& values) {
  return {std::move(name), [&values](ConfigFields& fields) { values.visit(fields); },
          [&values] { values.check(); }};
}

/// Reads YAML of the form  section: {key: value, ...}  into the sections' fields; what it does not
/// mention keeps its value. Strict: an unknown section or key, a key given twice, or a value of
/// another type is a kUsage Error that names file, line and key. Integers may be written 1e6;
/// true and false are the only truth values. An empty file changes nothing.
void read_yaml_file(const std::filesystem::path& path, const std::vector<ConfigSection>& sections);
/// The same from memory; `source` stands for the file name in messages.
void read_yaml_text(const std::string& text, const std::string& source,
                    const std::vector<ConfigSection>& sections);

/// Applies "section.key=value" or "key=value"; the value is YAML ("3e-4", "[256, 256]",
/// "beauty/corpus").
void apply_override(const std::string& assignment, const std::vector<ConfigSection>& sections);

/// Every section and key with its value, in order, as YAML that reads back to the same values, bit
/// by bit. `with_meanings` puts what each key means behind it, as a comment.
std::string to_yaml(const std::vector<ConfigSection>& sections, bool with_meanings);

}  // namespace mirabelle
