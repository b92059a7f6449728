#include "delimited_reader.h"

#include <cstring>

#include "mirabelle/core/error.h"

namespace mirabelle {

/// A quote that is never closed would otherwise swallow the rest of a large file.
constexpr size_t kMaxQuotedRecordBytes = 1 << 20;

DelimitedReader::DelimitedReader(const std::filesystem::path& path, char delimiter)
    : lines_(path), delimiter_(delimiter) {
  std::string_view line;
  MIRABELLE_CHECK_DATA(lines_.next(line), path.string(), ": is empty, wanted a header line");
  record_line_ = lines_.line_number();
  for (const char candidate : {'\t', ',', ';'}) {
    if (delimiter_ == 0 && line.find(candidate) != std::string_view::npos) delimiter_ = candidate;
  }
  if (delimiter_ == 0) delimiter_ = ',';
  std::vector<std::string_view> fields;
  split_quoted(line, fields);
  header_.assign(fields.begin(), fields.end());
}

bool DelimitedReader::next(std::vector<std::string_view>& fields) {
  std::string_view line;
  do {
    if (!lines_.next(line)) return false;
  } while (line.empty());
  record_line_ = lines_.line_number();
  if (std::memchr(line.data(), '"', line.size())) {
    split_quoted(line, fields);
  } else {
    split(line, fields);
  }
  MIRABELLE_CHECK_DATA(fields.size() == header_.size(), where(), ": has ", fields.size(),
                       " fields, the header has ", header_.size());
  return true;
}

std::string DelimitedReader::where() const {
  return lines_.path().string() + ":" + std::to_string(record_line_);
}

void DelimitedReader::split(std::string_view line, std::vector<std::string_view>& fields) const {
  fields.clear();
  const char* begin = line.data();
  const char* const end = begin + line.size();
  while (const void* found = std::memchr(begin, delimiter_, static_cast<size_t>(end - begin))) {
    const char* const at = static_cast<const char*>(found);
    fields.emplace_back(begin, at - begin);
    begin = at + 1;
  }
  fields.emplace_back(begin, end - begin);
}

void DelimitedReader::split_quoted(std::string_view line, std::vector<std::string_view>& fields) {
  record_ = line;
  unquoted_.clear();
  ends_.clear();
  size_t at = 0;
  while (true) {
    if (at < record_.size() && record_[at] == '"') {
      for (++at;; ++at) {
        if (at == record_.size()) {  // the field goes on in the next line
          MIRABELLE_CHECK_DATA(record_.size() < kMaxQuotedRecordBytes && lines_.next(line), where(),
                               ": a quoted field does not end");
          (record_ += '\n') += line;
        }
        if (record_[at] == '"' && (at + 1 == record_.size() || record_[++at] != '"')) break;
        unquoted_ += record_[at];
      }
      if (at < record_.size() && record_[at] == '"') ++at;  // the closing quote ends the line
      MIRABELLE_CHECK_DATA(at == record_.size() || record_[at] == delimiter_, where(),
                           ": has text after a closing quote");
    } else {
      while (at < record_.size() && record_[at] != delimiter_) unquoted_ += record_[at++];
    }
    ends_.push_back(unquoted_.size());
    if (at == record_.size()) break;
    ++at;
  }
  fields.clear();
  size_t begin = 0;
  for (size_t end : ends_) {
    fields.emplace_back(unquoted_.data() + begin, end - begin);
    begin = end;
  }
}

}  // namespace mirabelle
