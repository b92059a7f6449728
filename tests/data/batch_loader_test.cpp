#include "mirabelle/data/batch_loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "mirabelle/core/error.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

constexpr int64_t kItems = 40;
constexpr int64_t kLevels = 3;

/// Codes of item i: i, i, i, in ranges of their own.
TokenTable tokens() {
  TokenTable table{0, kLevels, {}};
  for (int32_t item = 0; item < kItems; ++item) {
    for (int32_t level = 0; level < kLevels; ++level) {
      table.tokens.push_back(1 + level * kItems + item);
    }
  }
  return table;
}

using Sequence = std::vector<int32_t>;  // items

/// The sequences of a part, after every token, target and position of it was checked.
std::vector<Sequence> sequences_of(const BatchLoader::Part& part) {
  std::vector<Sequence> sequences;
  EXPECT_EQ(part.sequence_offsets.front(), 0);
  EXPECT_EQ(part.sequence_offsets.back(), part.num_tokens());
  for (size_t s = 0; s + 1 < part.sequence_offsets.size(); ++s) {
    const int32_t begin = part.sequence_offsets[s], end = part.sequence_offsets[s + 1];
    EXPECT_EQ((end - begin) % kLevels, 0);
    Sequence items;
    for (int32_t i = begin; i < end; ++i) {
      const int32_t level = (i - begin) % kLevels;
      EXPECT_EQ(part.positions[i], i - begin);
      EXPECT_EQ(part.sequence_ids[i], part.sequence_ids[begin]);
      EXPECT_EQ(part.tokens[i], i == begin ? 0 : part.targets[i - 1]);
      const int32_t item = part.targets[i] - 1 - level * static_cast<int32_t>(kItems);
      if (level == 0) {
        items.push_back(item);
      } else {
        EXPECT_EQ(item, items.back());
      }
    }
    sequences.push_back(items);
  }
  return sequences;
}

class BatchLoaderTest : public ::testing::Test {
 protected:
  explicit BatchLoaderTest(int64_t num_users = 230)
      : corpus_(write_tiny_corpus(folder_.path() / "corpus", num_users, kItems, 2)) {}

  BatchLoader make(BatchLoader::Options options) { return {corpus_, tokens(), options}; }

  /// Training histories cut to windows of `max_events`.
  std::vector<Sequence> expected(int64_t max_events, bool newest_only) const {
    std::vector<Sequence> all;
    for (int64_t shard = 0; shard < corpus_.num_shards(); ++shard) {
      const HistoryBlock block = corpus_.read_histories(shard, 0, corpus_.shard_users(shard));
      for (int64_t user = 0; user < block.num_users(); ++user) {
        const auto history = block.training_part(user);
        const int64_t n = static_cast<int64_t>(history.size());
        if (newest_only) {
          const auto last = history.last(std::min(n, max_events));
          if (n > 0) all.emplace_back(last.begin(), last.end());
          continue;
        }
        for (int64_t i = 0; i < n; i += max_events) {
          all.emplace_back(history.begin() + i, history.begin() + std::min(n, i + max_events));
        }
      }
    }
    std::sort(all.begin(), all.end());
    return all;
  }

  /// All sequences of the next epoch.
  static std::vector<Sequence> epoch(BatchLoader& loader, bool sorted = true) {
    std::vector<Sequence> all;
    const int64_t number = loader.cursor().epoch;
    while (true) {
      const DataCursor before = loader.cursor();
      const BatchLoader::Step step = loader.next_step(1, 0, 1);
      if (loader.cursor().epoch != number) {  // this part was the first of the next epoch
        loader.seek(before);
        break;
      }
      for (Sequence& s : sequences_of(step.parts[0])) all.push_back(std::move(s));
    }
    if (sorted) std::sort(all.begin(), all.end());
    return all;
  }

  testing::TemporaryFolder folder_;
  Corpus corpus_;
};

TEST_F(BatchLoaderTest, AnEpochIsEveryTrainingEventOnce) {
  BatchLoader loader = make({.part_tokens = 120, .max_sequence_tokens = 60});
  EXPECT_EQ(epoch(loader), expected(20, false));
}

TEST_F(BatchLoaderTest, LongHistoriesAreCutIntoWindows) {
  BatchLoader loader = make({.part_tokens = 64, .max_sequence_tokens = 17});  // 5 items of 3 codes
  EXPECT_EQ(epoch(loader), expected(5, false));
}

TEST_F(BatchLoaderTest, OrToTheirNewestEvents) {
  BatchLoader loader =
      make({.part_tokens = 64, .max_sequence_tokens = 17, .newest_events_only = true});
  EXPECT_EQ(epoch(loader), expected(5, true));
}

TEST_F(BatchLoaderTest, AnEpochOfManyBlocksIsStillEveryEventOnce) {
  BatchLoader loader = make({.part_tokens = 90,
                             .parts_per_step = 4,
                             .max_sequence_tokens = 60,
                             .segment_users = 7,
                             .segments_per_block = 3});
  EXPECT_EQ(epoch(loader), expected(20, false));
  EXPECT_EQ(loader.cursor().epoch, 0);
}

TEST_F(BatchLoaderTest, EpochsAndSeedsHaveTheirOwnOrder) {
  BatchLoader loader = make({.part_tokens = 120, .max_sequence_tokens = 60});
  const auto first = epoch(loader, false);
  loader.seek({1, 0, 0});
  const auto second = epoch(loader, false);
  EXPECT_NE(first, second);
  EXPECT_EQ(first.size(), second.size());
  BatchLoader other = make({.seed = 1, .part_tokens = 120, .max_sequence_tokens = 60});
  EXPECT_NE(epoch(other, false), first);
  BatchLoader again = make({.part_tokens = 120, .max_sequence_tokens = 60});
  EXPECT_EQ(epoch(again, false), first);
}

TEST_F(BatchLoaderTest, PartsKeepTheBudgetAndAreWellFilled) {
  BatchLoader loader = make({.part_tokens = 300, .max_sequence_tokens = 60});
  int64_t tokens = 0, parts = 0;
  while (loader.cursor().epoch == 0) {
    const BatchLoader::Step step = loader.next_step(1, 0, 1);
    EXPECT_LE(step.num_tokens, 300);
    EXPECT_EQ(step.num_tokens, step.parts[0].num_tokens());
    tokens += step.num_tokens;
    ++parts;
  }
  EXPECT_GT(static_cast<double>(tokens) / static_cast<double>(300 * parts), 0.93);
}

/// Largest by mean sum of squared lengths over the parts of a step, averaged over the steps of an
/// epoch that are all of it.
double imbalance_of_steps(BatchLoader loader, int64_t num_parts) {
  double sum = 0;
  for (int64_t steps = 0;; ++steps) {
    const BatchLoader::Step step = loader.next_step(num_parts, 0, num_parts);
    if (loader.cursor().epoch != 0) return sum / static_cast<double>(steps);
    double largest = 0, total = 0;
    for (const BatchLoader::Part& part : step.parts) {
      double squares = 0;
      for (size_t s = 0; s + 1 < part.sequence_offsets.size(); ++s) {
        const double length = part.sequence_offsets[s + 1] - part.sequence_offsets[s];
        squares += length * length;
      }
      largest = std::max(largest, squares);
      total += squares;
    }
    sum += largest * static_cast<double>(num_parts) / total;
  }
}

TEST_F(BatchLoaderTest, PartsOfAStepCostAttentionAlike) {
  BatchLoader::Options options = {.part_tokens = 300, .max_sequence_tokens = 60};
  EXPECT_GT(imbalance_of_steps(make(options), 4), 1.05);
  options.parts_per_step = 4;
  EXPECT_LT(imbalance_of_steps(make(options), 4), 1.01);
}

TEST_F(BatchLoaderTest, RanksSeeTheSameStep) {
  const BatchLoader::Options options = {
      .part_tokens = 100, .parts_per_step = 4, .max_sequence_tokens = 60};
  BatchLoader whole = make(options);
  BatchLoader first = make(options);
  BatchLoader second = make(options);
  for (int i = 0; i < 30; ++i) {  // more than an epoch
    const auto all = whole.next_step(4, 0, 4);
    const auto left = first.next_step(4, 0, 2), right = second.next_step(4, 2, 4);
    EXPECT_EQ(left.num_tokens, all.num_tokens);
    EXPECT_EQ(right.num_tokens, all.num_tokens);
    ASSERT_EQ(right.parts.size(), 2u);
    EXPECT_EQ(left.parts[1].targets, all.parts[1].targets);
    EXPECT_EQ(right.parts[0].targets, all.parts[2].targets);
    EXPECT_EQ(right.parts[1].sequence_ids, all.parts[3].sequence_ids);
    EXPECT_EQ(first.cursor(), whole.cursor());
    EXPECT_EQ(second.cursor(), whole.cursor());
  }
}

TEST_F(BatchLoaderTest, SequencesAreNumberedOverTheWholeStep) {
  BatchLoader loader = make({.part_tokens = 100, .max_sequence_tokens = 60});
  const auto step = loader.next_step(5, 0, 5);
  int32_t next = 0;
  for (const auto& part : step.parts) {
    for (size_t s = 0; s + 1 < part.sequence_offsets.size(); ++s) {
      EXPECT_EQ(part.sequence_ids[part.sequence_offsets[s]], next++);
    }
  }
  EXPECT_GT(next, 5);
}

TEST_F(BatchLoaderTest, GoesOnFromAnyCursor) {
  const BatchLoader::Options options = {.part_tokens = 100,
                                        .parts_per_step = 3,
                                        .max_sequence_tokens = 60,
                                        .segment_users = 20,
                                        .segments_per_block = 2};
  BatchLoader loader = make(options);
  for (int i = 0; i < 40; ++i) {
    const DataCursor cursor = loader.cursor();
    const auto step = loader.next_step(2, 0, 2);
    BatchLoader resumed = make(options);
    resumed.seek(cursor);
    const auto again = resumed.next_step(2, 0, 2);
    EXPECT_EQ(again.parts[0].targets, step.parts[0].targets);
    EXPECT_EQ(again.parts[1].targets, step.parts[1].targets);
    EXPECT_EQ(resumed.cursor(), loader.cursor());
  }
  EXPECT_GT(loader.cursor().epoch, 0);
}

TEST_F(BatchLoaderTest, RefusesSequencesThatHoldNoItem) {
  EXPECT_THROW(make({.part_tokens = 100, .max_sequence_tokens = 2}), Error);
  EXPECT_THROW(make({.part_tokens = 50, .max_sequence_tokens = 60}), Error);
}

class EmptyBatchLoaderTest : public BatchLoaderTest {
 protected:
  EmptyBatchLoaderTest() : BatchLoaderTest(0) {}
};

TEST_F(EmptyBatchLoaderTest, RefusesACorpusWithoutTrainingEvents) {
  try {
    make({.part_tokens = 100, .max_sequence_tokens = 60});
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
  }
}

}  // namespace
}  // namespace mirabelle
