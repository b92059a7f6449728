#include "mirabelle/tokenizer/item_rows.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace mirabelle {
namespace {

using Ranges = std::vector<std::pair<int64_t, int64_t>>;

/// Row i is {10 i, 10 i + 1}; remembers what is read of it.
struct Source {
  explicit Source(int64_t num_items)
      : rows{num_items, 2, [this](int64_t begin, int64_t end, float* out) {
               read.emplace_back(begin, end);
               for (int64_t i = begin; i < end; ++i) {
                 *out++ = static_cast<float>(10 * i);
                 *out++ = static_cast<float>(10 * i + 1);
               }
             }} {}
  Ranges read;
  ItemRows rows;
};

void expect_rows(const ItemRows& rows, int64_t begin, int64_t end) {
  std::vector<float> values(2 * (end - begin) + 1, -1);
  rows.read(begin, end, values.data());
  for (int64_t i = 0; i < end - begin; ++i) {
    EXPECT_EQ(values[2 * i], static_cast<float>(10 * (begin + i)));
    EXPECT_EQ(values[2 * i + 1], static_cast<float>(10 * (begin + i) + 1));
  }
  EXPECT_EQ(values.back(), -1) << "wrote beyond row " << end;
}

TEST(BufferedRows, KeepsWhatFitsIntoTheBytes) {
  Source source(100);
  const ItemRows rows = buffered_rows(source.rows, 10, 100 * 2 * 4);
  EXPECT_EQ(rows.num_items, 100);
  EXPECT_EQ(rows.dim, 2);
  expect_rows(rows, 57, 58);
  expect_rows(rows, 3, 4);
  expect_rows(rows, 0, 100);
  EXPECT_EQ(source.read, (Ranges{{0, 100}}));
}

TEST(BufferedRows, KeepsWhatFitsIntoTheWindow) {
  Source source(10);
  const ItemRows rows = buffered_rows(source.rows, 10);
  expect_rows(rows, 9, 10);
  expect_rows(rows, 0, 3);
  EXPECT_EQ(source.read, (Ranges{{0, 10}}));
}

TEST(BufferedRows, ReadsAheadOfReadersInOrder) {
  Source source(100);
  const ItemRows rows = buffered_rows(source.rows, 10, 100 * 2 * 4 - 1);
  for (int64_t begin = 40; begin < 72; begin += 4) expect_rows(rows, begin, begin + 4);
  expect_rows(rows, 96, 98);
  expect_rows(rows, 98, 100);  // a window that the end cuts short
  // The piece 52 to 56 reaches over the end of the window from 44, and moves it.
  EXPECT_EQ(source.read,
            (Ranges{{40, 44}, {44, 54}, {52, 62}, {60, 70}, {68, 78}, {96, 98}, {98, 100}}));
}

TEST(BufferedRows, PiecesHereAndTherePassTheWindowBy) {
  Source source(100);
  const ItemRows rows = buffered_rows(source.rows, 10);
  expect_rows(rows, 20, 22);
  expect_rows(rows, 22, 24);  // in order: the window is 22 to 32
  expect_rows(rows, 80, 84);
  expect_rows(rows, 5, 6);
  expect_rows(rows, 26, 32);  // still there
  expect_rows(rows, 32, 42);  // as large as the window: straight from the source
  EXPECT_EQ(source.read, (Ranges{{20, 22}, {22, 32}, {80, 84}, {5, 6}, {32, 42}}));
}

TEST(BufferedRows, CopiesShareTheMemory) {
  Source source(100);
  const ItemRows rows = buffered_rows(source.rows, 10, 1 << 20), copy = rows;
  expect_rows(rows, 1, 2);
  expect_rows(copy, 70, 72);
  EXPECT_EQ(source.read.size(), 1U);
}

TEST(BufferedRows, NothingIsRead) {
  Source source(0);
  const ItemRows rows = buffered_rows(source.rows, 10, 1 << 20);
  expect_rows(rows, 0, 0);
  EXPECT_EQ(rows.num_items, 0);
}

}  // namespace
}  // namespace mirabelle
