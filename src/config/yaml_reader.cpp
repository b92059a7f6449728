#include "mirabelle/config/yaml_reader.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <sstream>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
namespace {

/// A configuration is short. The parser keeps several hundred bytes for each byte of a hostile one.
constexpr size_t kMaxBytes = 1 << 18;

// --- where and what, for messages
// -----------------------------------------------------------------

/// A key and its value. `where` is "train.yaml:12", or the whole --set for an override.
struct Entry {
  std::string name;
  YAML::Node value;
  std::string where;
};

std::string place(const std::string& source, const YAML::Mark& mark) {
  return mark.is_null() ? source : source + ":" + std::to_string(mark.line + 1);
}

std::string shortened(const std::string& text) {
  constexpr size_t kShownBytes = 100;
  return text.size() <= kShownBytes ? text : text.substr(0, kShownBytes) + "...";
}

std::string describe(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Scalar:
      return (node.Tag() == "!" ? "the text \"" : "\"") + shortened(node.Scalar()) + "\"";
    case YAML::NodeType::Sequence:
      return "a list";
    case YAML::NodeType::Map:
      return "a table of keys";
    default:
      return "nothing";
  }
}

/// No name is compared with a longer one, which would take long.
constexpr size_t kMaxNameBytes = 64;

int64_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<int64_t> row(b.size() + 1);  // Levenshtein distance of a's prefix to b's prefixes
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int64_t diagonal = row[0]++;
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

/// Collects the names of a section's fields.
class FieldNames : public ConfigFields {
 public:
  std::vector<std::string> names;
  void field(const char* name, bool&, const char*) override { names.push_back(name); }
  void field(const char* name, int64_t&, const char*) override { names.push_back(name); }
  void field(const char* name, double&, const char*) override { names.push_back(name); }
  void field(const char* name, std::string&, const char*) override { names.push_back(name); }
  void field(const char* name, std::vector<int64_t>&, const char*) override {
    names.push_back(name);
  }
  void field(const char* name, std::vector<double>&, const char*) override {
    names.push_back(name);
  }
  void field(const char* name, std::vector<std::string>&, const char*) override {
    names.push_back(name);
  }
};

std::vector<std::string> field_names(const ConfigSection& section) {
  FieldNames collector;
  section.visit(collector);
  return collector.names;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

bool near_enough(int64_t distance, const std::string& name) {
  return distance <= std::max<int64_t>(2, static_cast<int64_t>(name.size()) / 3);
}

/// "; did you mean model.hidden_size?", or the names that exist if none is near. A key is looked
/// for in every section, because keys are most often put in the wrong one.
std::string key_suggestion(const std::string& section, const std::string& key,
                           const std::vector<ConfigSection>& sections) {
  if (key.size() > kMaxNameBytes) return "";
  std::string best, known;
  int64_t best_distance = std::numeric_limits<int64_t>::max();
  for (const ConfigSection& candidate : sections) {
    const std::vector<std::string> names = field_names(candidate);
    if (candidate.name == section) known = joined(names);
    for (const std::string& name : names) {
      const int64_t distance = edit_distance(key, name) * 2 + (candidate.name == section ? 0 : 1);
      if (distance >= best_distance) continue;
      best_distance = distance;
      best = candidate.name.empty() ? name : candidate.name + "." + name;
    }
  }
  if (!best.empty() && near_enough(best_distance / 2, key)) return "; did you mean " + best + "?";
  return known.empty() ? "" : "; its keys are " + known;
}

[[noreturn]] void refuse_section(const std::string& where, const std::string& name,
                                 const std::vector<ConfigSection>& sections) {
  std::vector<std::string> names;
  for (const ConfigSection& section : sections) {
    if (!section.name.empty()) names.push_back(section.name);
  }
  if (name.size() > kMaxNameBytes) {
    throw_error(ErrorKind::kUsage, where, ": there is no section ", shortened(name));
  }
  const auto nearest = std::min_element(names.begin(), names.end(), [&](auto& a, auto& b) {
    return edit_distance(name, a) < edit_distance(name, b);
  });
  const bool near = nearest != names.end() && near_enough(edit_distance(name, *nearest), name);
  std::string hint = near ? "did you mean " + *nearest + "?" : "the sections are " + joined(names);
  // a key on the outermost level, without its section
  if (!near) {
    const std::string suggestion = key_suggestion("", name, sections);
    if (!suggestion.empty()) hint = suggestion.substr(2);
  }
  throw_error(ErrorKind::kUsage, where, ": there is no section ", name, "; ", hint);
}

// --- values
// ---------------------------------------------------------------------------------------

/// A plain (not quoted) scalar's text, or nothing.
const std::string* plain_text(const YAML::Node& node) {
  return node.IsScalar() && node.Tag() != "!" ? &node.Scalar() : nullptr;
}

template <typename Number>
bool parse_whole(const std::string& text, Number& value) {
  const char* begin = text.data() + (text.size() > 1 && text[0] == '+' && text[1] != '-' ? 1 : 0);
  const char* end = text.data() + text.size();
  Number number;
  const auto result = std::from_chars(begin, end, number);
  if (result.ec != std::errc() || result.ptr != end) return false;
  value = number;
  return true;
}

bool parse(const YAML::Node& node, bool& value) {
  const std::string* text = plain_text(node);
  if (!text || (*text != "true" && *text != "false")) return false;
  value = *text == "true";
  return true;
}

bool parse(const YAML::Node& node, double& value) {
  const std::string* text = plain_text(node);
  if (!text) return false;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (*text == ".inf" || *text == "+.inf") return value = kInfinity, true;
  if (*text == "-.inf") return value = -kInfinity, true;
  if (*text == ".nan") return value = std::numeric_limits<double>::quiet_NaN(), true;
  double number;  // from_chars also takes "inf" and "nan"
  if (!parse_whole(*text, number) || !std::isfinite(number)) return false;
  value = number;
  return true;
}

bool parse(const YAML::Node& node, int64_t& value) {
  const std::string* text = plain_text(node);
  if (!text) return false;
  if (parse_whole(*text, value)) return true;
  // 1e6 and 2.5e3 are convenient and exact; 6.0 is not taken, it looks like a real-valued setting
  double scientific;
  constexpr double kExactBelow = 9007199254740992.0;  // 2^53
  if (text->find_first_of("eE") == std::string::npos || !parse_whole(*text, scientific) ||
      !(std::abs(scientific) <= kExactBelow) || scientific != std::floor(scientific)) {
    return false;
  }
  value = static_cast<int64_t>(scientific);
  return true;
}

bool parse(const YAML::Node& node, std::string& value) {
  if (!node.IsScalar()) return false;
  value = node.Scalar();
  return true;
}

template <typename T>
bool parse(const YAML::Node& node, std::vector<T>& value) {
  if (!node.IsSequence()) return false;
  std::vector<T> elements(node.size());
  for (size_t i = 0; i < node.size(); ++i) {
    if (!parse(node[i], elements[i])) return false;
  }
  value = std::move(elements);
  return true;
}

/// Sets those fields of a section for which there is a node.
class FieldSetter : public ConfigFields {
 public:
  FieldSetter(const std::string& section, const std::vector<Entry>& entries)
      : section_(section), entries_(entries) {}

  void field(const char* name, bool& value, const char*) override {
    set(name, value, "true or false");
  }
  void field(const char* name, int64_t& value, const char*) override {
    set(name, value, "an integer");
  }
  void field(const char* name, double& value, const char*) override {
    set(name, value, "a number");
  }
  void field(const char* name, std::string& value, const char*) override {
    set(name, value, "text");
  }
  void field(const char* name, std::vector<int64_t>& value, const char*) override {
    set(name, value, "a list of integers such as [256, 256]");
  }
  void field(const char* name, std::vector<double>& value, const char*) override {
    set(name, value, "a list of numbers such as [1, 0.5]");
  }
  void field(const char* name, std::vector<std::string>& value, const char*) override {
    set(name, value, "a list of texts such as [title, image]");
  }

 private:
  template <typename T>
  void set(const char* name, T& value, const char* wanted) {
    for (const Entry& entry : entries_) {
      if (entry.name != name) continue;
      MIRABELLE_CHECK_USAGE(parse(entry.value, value), entry.where, ": ", section_,
                            section_.empty() ? "" : ".", name, " wants ", wanted, ", not ",
                            describe_list(entry.value));
    }
  }

  /// Shows the elements of a short list, since one of them is the culprit.
  static std::string describe_list(const YAML::Node& node) {
    if (!node.IsSequence() || node.size() > 16) return describe(node);
    std::string text = "[";
    for (size_t i = 0; i < node.size(); ++i) text += (i ? ", " : "") + describe(node[i]);
    return text + "]";
  }

  const std::string& section_;
  const std::vector<Entry>& entries_;
};

const ConfigSection* find_section(const std::string& name,
                                  const std::vector<ConfigSection>& sections) {
  const auto found =
      std::find_if(sections.begin(), sections.end(),
                   [&](const ConfigSection& section) { return section.name == name; });
  return found == sections.end() ? nullptr : &*found;
}

/// The section without a name, if it has this key.
const ConfigSection* section_of_key(const std::string& key,
                                    const std::vector<ConfigSection>& sections) {
  const ConfigSection* outermost = find_section("", sections);
  if (!outermost) return nullptr;
  const std::vector<std::string> names = field_names(*outermost);
  return std::find(names.begin(), names.end(), key) == names.end() ? nullptr : outermost;
}

/// The entries of a mapping; each key must be a name and occur once.
std::vector<Entry> entries_of(const YAML::Node& map, const std::string& source,
                              const std::string& prefix) {
  std::vector<Entry> entries;
  std::map<std::string, std::string> places;  // where each name was given
  for (const auto& pair : map) {
    const Entry entry = {pair.first.IsScalar() ? pair.first.Scalar() : "", pair.second,
                         place(source, pair.first.Mark())};
    MIRABELLE_CHECK_USAGE(pair.first.IsScalar(), entry.where, ": a key must be a name, not ",
                          describe(pair.first));
    const auto [former, is_new] = places.emplace(entry.name, entry.where);
    MIRABELLE_CHECK_USAGE(is_new, entry.where, ": ", prefix, shortened(entry.name),
                          " is given a second time, first at ", former->second);
    entries.push_back(entry);
  }
  return entries;
}

/// Sets the fields that the entries name, and refuses entries that no field has.
void set_fields(const std::vector<Entry>& entries, const ConfigSection& section,
                const std::vector<ConfigSection>& sections) {
  const std::vector<std::string> known = field_names(section);
  for (const Entry& entry : entries) {
    MIRABELLE_CHECK_USAGE(std::find(known.begin(), known.end(), entry.name) != known.end(),
                          entry.where, ": there is no key ", section.name, ".",
                          shortened(entry.name),
                          key_suggestion(section.name, entry.name, sections));
  }
  FieldSetter setter(section.name, entries);
  section.visit(setter);
}

/// Takes a document and does nothing with it.
class IgnoredDocument : public YAML::EventHandler {
 public:
  using Mark = YAML::Mark;
  using Style = YAML::EmitterStyle::value;
  void OnDocumentStart(const Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const Mark&, YAML::anchor_t) override {}
  void OnAlias(const Mark&, YAML::anchor_t) override {}
  void OnScalar(const Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const Mark&, const std::string&, YAML::anchor_t, Style) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const Mark&, const std::string&, YAML::anchor_t, Style) override {}
  void OnMapEnd() override {}
};

/// The one document; a null node if there is none. (YAML::LoadAll never comes to an end of some
/// texts: it finds one document after the other.)
YAML::Node load(const std::string& text, const std::string& source) {
  MIRABELLE_CHECK_USAGE(text.size() <= kMaxBytes, source, ": has ", text.size(),
                        " bytes, wanted a configuration of at most ", kMaxBytes);
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    IgnoredDocument ignored;
    const bool has_two = parser.HandleNextDocument(ignored) && parser.HandleNextDocument(ignored);
    MIRABELLE_CHECK_USAGE(!has_two, source, ": holds several YAML documents, wanted one");
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    const bool is_file = !source.starts_with("--set ");
    throw_error(ErrorKind::kUsage, is_file ? place(source, error.mark) : source,
                ": not valid YAML: ", error.msg);
  }
}

// --- writing
// --------------------------------------------------------------------------------------

std::string written(bool value) { return value ? "true" : "false"; }
std::string written(int64_t value) { return std::to_string(value); }

std::string written(double value) {
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  char text[40];
  const auto result = std::to_chars(text, text + sizeof text, value);  // shortest with these bits
  return {text, result.ptr};
}

/// Plain where no YAML reader could take it for anything but text, otherwise in double quotes.
std::string written(const std::string& value) {
  const auto is_plain = [](unsigned char c) {
    return std::isalnum(c) || std::string("_./-+").find(static_cast<char>(c)) != std::string::npos;
  };
  static const std::vector<std::string> kReserved = {"true", "false", "yes", "no", "on",
                                                     "off",  "null",  "y",   "n"};
  std::string lower = value;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const bool starts_plain = !value.empty() && (std::isalpha(static_cast<unsigned char>(value[0])) ||
                                               value[0] == '/' || value[0] == '_');
  if (starts_plain && std::all_of(value.begin(), value.end(), is_plain) &&
      std::find(kReserved.begin(), kReserved.end(), lower) == kReserved.end()) {
    return value;
  }
  std::ostringstream quoted;
  for (const char c : value) {
    constexpr char kHex[] = "0123456789abcdef";
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted << '\\' << c;
    } else if (byte < 32 || byte == 127) {
      quoted << "\\x" << kHex[byte >> 4] << kHex[byte & 15];
    } else {
      quoted << c;
    }
  }
  return '"' + quoted.str() + '"';
}

template <typename T>
std::string written(const std::vector<T>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + written(values[i]);
  return text + "]";
}

class FieldWriter : public ConfigFields {
 public:
  FieldWriter(bool with_meanings, const char* indent)
      : with_meanings_(with_meanings), indent_(indent) {}
  std::string text;

  void field(const char* name, bool& value, const char* meaning) override {
    add(name, written(value), meaning);
  }
  void field(const char* name, int64_t& value, const char* meaning) override {
    add(name, written(value), meaning);
  }
  void field(const char* name, double& value, const char* meaning) override {
    add(name, written(value), meaning);
  }
  void field(const char* name, std::string& value, const char* meaning) override {
    add(name, written(value), meaning);
  }
  void field(const char* name, std::vector<int64_t>& value, const char* meaning) override {
    add(name, written(value), meaning);
  }
  void field(const char* name, std::vector<double>& value, const char* meaning) override {
    add(name, written(value), meaning);
  }
  void field(const char* name, std::vector<std::string>& value, const char* meaning) override {
    add(name, written(value), meaning);
  }

 private:
  void add(const std::string& name, const std::string& value, const char* meaning) {
    constexpr size_t kCommentColumn = 34;
    std::string line = indent_ + name + ": " + value;
    if (with_meanings_ && *meaning) {
      if (line.size() < kCommentColumn) line.resize(kCommentColumn, ' ');
      line += "  # ";
      for (const char* c = meaning; *c; ++c) line += *c == '\n' ? ' ' : *c;
    }
    text += line + '\n';
  }

  bool with_meanings_;
  std::string indent_;
};

}  // namespace

void read_yaml_text(const std::string& text, const std::string& source,
                    const std::vector<ConfigSection>& sections) {
  const YAML::Node document = load(text, source);
  if (document.IsNull()) return;
  MIRABELLE_CHECK_USAGE(document.IsMap(), place(source, document.Mark()),
                        ": wanted sections with keys and values, not ", describe(document));
  for (const Entry& entry : entries_of(document, source, "section ")) {
    if (const ConfigSection* outermost = section_of_key(entry.name, sections)) {
      set_fields({entry}, *outermost, sections);
      continue;
    }
    const ConfigSection* section = find_section(entry.name, sections);
    if (!section) refuse_section(entry.where, entry.name, sections);
    if (entry.value.IsNull()) continue;
    MIRABELLE_CHECK_USAGE(entry.value.IsMap(), entry.where, ": section ", entry.name,
                          " wants keys and values, not ", describe(entry.value));
    set_fields(entries_of(entry.value, source, entry.name + "."), *section, sections);
  }
}

void read_yaml_file(const std::filesystem::path& path, const std::vector<ConfigSection>& sections) {
  MIRABELLE_CHECK_USAGE(std::filesystem::exists(path), path.string(), ": no such file");
  read_yaml_text(read_text_file(path), path.string(), sections);
}

void apply_override(const std::string& assignment, const std::vector<ConfigSection>& sections) {
  const std::string source = "--set " + assignment;
  const size_t equals = assignment.find('=');
  const std::string name = assignment.substr(0, equals);
  const size_t dot = name.find('.');
  const ConfigSection* outermost = section_of_key(name, sections);
  MIRABELLE_CHECK_USAGE(
      equals != std::string::npos && (outermost || dot != std::string::npos), source,
      ": wanted section.key=value such as training.learning_rate=3e-4",
      equals != std::string::npos ? key_suggestion("", name, sections) : std::string());
  const std::string section_name = outermost ? "" : name.substr(0, dot);
  const std::string key = outermost ? name : name.substr(dot + 1);
  const ConfigSection* section = find_section(section_name, sections);
  if (!section || (section->name.empty() && !outermost)) {
    refuse_section(source, section_name, sections);
  }
  const std::string value = assignment.substr(equals + 1);
  const YAML::Node node = load(value.empty() ? "\"\"" : value, source);
  set_fields({{key, node, source}}, *section, sections);
}

std::string to_yaml(const std::vector<ConfigSection>& sections, bool with_meanings) {
  std::string text;
  for (const ConfigSection& section : sections) {
    const bool outermost = section.name.empty();
    FieldWriter writer(with_meanings, outermost ? "" : "  ");
    section.visit(writer);
    text += (text.empty() ? "" : "\n") + (outermost ? "" : section.name + ":\n") + writer.text;
  }
  return text;
}

}  // namespace mirabelle
