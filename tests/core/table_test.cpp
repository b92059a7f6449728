#include "mirabelle/core/table.h"

#include <gtest/gtest.h>

#include <sstream>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

std::string printed(const Table& table) {
  std::ostringstream out;
  table.print(out);
  return out.str();
}

TEST(TableTest, AlignsNumbersToTheRightAndTextToTheLeft) {
  Table table({"model", "recall@10", "95 %"});
  table.add_row({"popularity", "0.012", "[0.011, 0.014]"});
  table.add_row({"ours", "10.5", "-"});
  EXPECT_EQ(printed(table),
            "model       recall@10            95 %\n"
            "-------------------------------------\n"
            "popularity      0.012  [0.011, 0.014]\n"
            "ours             10.5               -\n");
}

TEST(TableTest, CountsTerminalColumnsNotBytes) {
  Table table({"title", "n"});
  table.add_row({"Äpfel", "1"});
  table.add_row({"梅子", "20"});
  EXPECT_EQ(printed(table),
            "title   n\n"
            "---------\n"
            "Äpfel   1\n"
            "梅子   20\n");
}

TEST(TableTest, PrintsAHeaderWithoutRows) {
  EXPECT_EQ(printed(Table({"a", "bc"})), "a  bc\n-----\n");
}

TEST(TableTest, LeavesNoBlanksAtTheEndOfALine) {
  Table table({"name", "remark"});
  table.add_row({"a", "a long remark"});
  table.add_row({"b", ""});
  EXPECT_EQ(printed(table), "name  remark\n-------------------\na     a long remark\nb\n");
}

TEST(TableTest, RefusesRowsOfAnotherWidth) {
  Table table({"a", "b"});
  EXPECT_THROW(table.add_row({"1"}), Error);
  EXPECT_THROW(table.add_row({"1", "2", "3"}), Error);
}

TEST(TableTest, WidthOfUtf8Text) {
  EXPECT_EQ(display_width(""), 0u);
  EXPECT_EQ(display_width("plum"), 4u);
  EXPECT_EQ(display_width("Käse"), 4u);
  EXPECT_EQ(display_width("日本"), 4u);
  EXPECT_EQ(display_width("e\u0301"), 1u);
  EXPECT_EQ(display_width("🍑"), 2u);
  EXPECT_EQ(display_width("\xff\x80"), 1u);  // not UTF-8: any width, but it ends
}

TEST(TableTest, FormatsNumbers) {
  EXPECT_EQ(format_number(0.0614, 3), "0.061");
  EXPECT_EQ(format_number(-2, 0), "-2");
  EXPECT_EQ(format_number(1e300, 0).size(), 301u);
}

}  // namespace
}  // namespace mirabelle
