#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace mirabelle {

/// A table for people: columns padded to their widest cell, two blanks apart, a rule under the
/// header. A column whose cells are all numbers ("0.061", "12 %", "[0.05, 0.07]", "-") is aligned
/// to the right. Widths are counted in terminal columns, so UTF-8 text lines up.
class Table {
 public:
  explicit Table(std::vector<std::string> header);
  /// Throws unless there are as many cells as the header has.
  void add_row(std::vector<std::string> cells);
  void print(std::ostream& out) const;

 private:
  std::vector<std::vector<std::string>> rows_;  // the header first
};

/// How many terminal columns UTF-8 text takes: East Asian characters and emoji two, combining marks
/// none.
size_t display_width(const std::string& text);

/// `value` with this many digits after the point, e.g. (0.0614, 3) is "0.061".
std::string format_number(double value, int decimals);

}  // namespace mirabelle
