#include "mirabelle/core/table.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

bool looks_like_a_number(const std::string& cell) {
  const size_t start = cell.find_first_not_of("+-.[(<>~= ");
  if (start == std::string::npos) return true;  // empty, or a dash
  return std::isdigit(static_cast<unsigned char>(cell[start])) != 0;
}

struct Range {
  uint32_t first, last;
};
// Unicode 15, EastAsianWidth.txt (W and F) and the combining marks, the blocks that titles contain.
constexpr Range kWide[] = {{0x1100, 0x115F}, {0x2E80, 0xA4CF},   {0xAC00, 0xD7A3},
                           {0xF900, 0xFAFF}, {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},
                           {0xFFE0, 0xFFE6}, {0x1F300, 0x1FAFF}, {0x20000, 0x3FFFD}};
constexpr Range kZeroWidth[] = {{0x0300, 0x036F}, {0x200B, 0x200F}, {0xFE00, 0xFE0F}};

bool contains(uint32_t character, const auto& ranges) {
  return std::any_of(std::begin(ranges), std::end(ranges), [&](const Range& range) {
    return range.first <= character && character <= range.last;
  });
}

}  // namespace

size_t display_width(const std::string& text) {
  size_t width = 0;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    uint32_t character = lead < 0x80   ? lead
                         : lead < 0xE0 ? lead & 31
                         : lead < 0xF0 ? lead & 15
                                       : lead & 7;
    while (i < text.size() && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) {
      character = (character << 6) | (static_cast<unsigned char>(text[i++]) & 63);
    }
    width += contains(character, kZeroWidth) ? 0 : contains(character, kWide) ? 2 : 1;
  }
  return width;
}

std::string format_number(double value, int decimals) {
  char text[400];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

Table::Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }

void Table::add_row(std::vector<std::string> cells) {
  MIRABELLE_CHECK(cells.size() == rows_[0].size(), "the table has ", rows_[0].size(),
                  " columns, the row has ", cells.size(), " cells");
  rows_.push_back(std::move(cells));
}

void Table::print(std::ostream& out) const {
  const size_t num_columns = rows_[0].size();
  std::vector<size_t> widths(num_columns, 0);
  std::vector<bool> align_right(num_columns, rows_.size() > 1);
  for (size_t row = 0; row < rows_.size(); ++row) {
    for (size_t column = 0; column < num_columns; ++column) {
      widths[column] = std::max(widths[column], display_width(rows_[row][column]));
      if (row > 0 && !looks_like_a_number(rows_[row][column])) align_right[column] = false;
    }
  }
  for (size_t row = 0; row < rows_.size(); ++row) {
    std::string line;
    for (size_t column = 0; column < num_columns; ++column) {
      const std::string& cell = rows_[row][column];
      const std::string padding(widths[column] - display_width(cell), ' ');
      line += (column > 0 ? "  " : "") + (align_right[column] ? padding + cell : cell + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out << line << '\n';
    if (row > 0) continue;
    size_t total = 2 * (num_columns - std::min<size_t>(num_columns, 1));
    for (size_t width : widths) total += width;
    out << std::string(total, '-') << '\n';
  }
}

}  // namespace mirabelle
