#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "line_reader.h"

namespace mirabelle {

/// Reads delimited text (CSV, TSV) record by record, with the quotes of RFC 4180: a field that
/// begins with a quote ends at the next single one, may hold delimiters and line ends, and writes a
/// quote as two. A quote within an unquoted field stands for itself.
class DelimitedReader {
 public:
  /// Reads the header. `delimiter` 0: the first of tab, comma, semicolon that it holds.
  DelimitedReader(const std::filesystem::path& path, char delimiter);

  const std::vector<std::string>& header() const { return header_; }
  /// The next record, as many fields as the header has; valid until the next call. Throws if it has
  /// more or fewer. Skips blank lines.
  bool next(std::vector<std::string_view>& fields);
  std::string where() const;  ///< "file:line" of the last record's first line
  double fraction_read() const { return lines_.fraction_read(); }

 private:
  void split(std::string_view line, std::vector<std::string_view>& fields) const;
  void split_quoted(std::string_view line, std::vector<std::string_view>& fields);

  LineReader lines_;
  char delimiter_;
  int64_t record_line_ = 0;
  std::vector<std::string> header_;
  std::string record_, unquoted_;
  std::vector<size_t> ends_;
};

}  // namespace mirabelle
