#include "mirabelle/model/batch_queue.h"

#include <gtest/gtest.h>

#include "support/backends.h"
#include "support/devices.h"
#include "support/errors.h"
#include "support/tiny_model.h"

namespace mirabelle::testing {
namespace {

using Indices = std::vector<int32_t>;

constexpr int64_t kMaxTokens = 20, kMaxSequence = 4;

/// A batch of the padded shape, on the host.
struct Padded {
  explicit Padded(const PackedBatch& batch)
      : num_sequences(num_padded_sequences(batch, kMaxTokens, kMaxSequence)),
        tokens(kMaxTokens, 77),
        targets(kMaxTokens, 77),
        positions(kMaxTokens, 77),
        sequence_ids(kMaxTokens, 77),
        offsets(num_sequences + 1, 77) {
    pad_batch({view_of(tokens), view_of(targets), view_of(positions), view_of(sequence_ids),
               view_of(offsets)},
              batch, kMaxSequence);
  }
  int64_t num_sequences;
  Indices tokens, targets, positions, sequence_ids, offsets;
};

TEST(PadBatchTest, FillsUpWithSequencesWithoutTargets) {
  const TinyBatch batch({4, 3}, 9, 1);
  const Padded padded(batch.view());
  const auto begins_with = [](const Indices& all, const Indices& own) {
    return std::equal(own.begin(), own.end(), all.begin());
  };
  EXPECT_TRUE(begins_with(padded.tokens, batch.tokens));
  EXPECT_TRUE(begins_with(padded.targets, batch.targets));
  EXPECT_TRUE(begins_with(padded.sequence_ids, batch.sequence_ids));
  EXPECT_EQ(std::count(padded.targets.begin() + 7, padded.targets.end(), -1), 13);
  EXPECT_EQ(padded.positions,
            (Indices{0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0}));
  EXPECT_EQ(padded.offsets,
            (Indices{0, 4, 7, 11, 15, 19, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20}));
  EXPECT_EQ(padded.num_sequences, 16);
}

TEST(PadBatchTest, TakesFullAndEmptyBatches) {
  const TinyBatch full({4, 4, 4, 4, 4}, 9, 1);
  const Padded padded(full.view());
  EXPECT_EQ(padded.tokens, full.tokens);
  EXPECT_EQ(padded.targets, full.targets);
  EXPECT_EQ(padded.offsets[5], 20);
  EXPECT_EQ(padded.offsets[16], 20);
  const Padded empty(TinyBatch({}, 9, 1).view());
  EXPECT_EQ(empty.targets, Indices(kMaxTokens, -1));
  EXPECT_EQ(empty.offsets[5], 20);
}

TEST(PadBatchTest, RoundsTheNumberOfSequencesUp) {
  EXPECT_EQ(num_padded_sequences(TinyBatch({1}, 9, 1).view(), 1, 4), 16);
  EXPECT_EQ(num_padded_sequences(TinyBatch(std::vector<int64_t>(16, 1), 9, 1).view(), 16, 4), 16);
  EXPECT_EQ(num_padded_sequences(TinyBatch(std::vector<int64_t>(16, 1), 9, 1).view(), 17, 4), 32);
}

// Dummy tokens may change nothing: not the loss, not a gradient.
TEST(PadBatchTest, DoesNotChangeLossOrGradients) {
  TransformerConfig config = tiny_config();
  config.dropout = 0.2;
  Transformer model = make_tiny_model(config, 9, DType::kFloat64);
  const TinyBatch batch({4, 1, 3}, 9, 1);
  const auto run = [&](const PackedBatch& view) {
    model.begin_step(0.1, 1, 2, Stream());
    model.forward_backward(view, {}, Stream());
    std::vector<double> result = to_doubles(model.gradients());
    result.push_back(*model.loss_sum().as<double>());
    return result;
  };
  const Padded padded(batch.view());
  expect_near(run({view_of(padded.tokens), view_of(padded.targets), view_of(padded.positions),
                   view_of(padded.sequence_ids), view_of(padded.offsets)}),
              run(batch.view()), 1e-13, "loss and gradients");
}

class BatchQueueTest : public DeviceTest {};
MIRABELLE_INSTANTIATE_DEVICES(BatchQueueTest);

TEST_P(BatchQueueTest, HandsBatchesOutInOrder) {
  const Stream stream(GetParam());
  BatchQueue queue(GetParam(), kMaxTokens, kMaxSequence);
  const TinyBatch batches[] = {TinyBatch({4, 3}, 9, 1), TinyBatch({1}, 9, 2), TinyBatch({2}, 9, 3),
                               TinyBatch(std::vector<int64_t>(20, 1), 9, 4)};
  queue.push(batches[0].view());
  const void* place = nullptr;
  for (int i = 0; i < 4; ++i) {
    if (i < 3) queue.push(batches[i + 1].view());
    const PackedBatch batch = queue.pop(stream);
    const int64_t own = batches[i].view().tokens.num_elements();
    EXPECT_EQ(to_host<int32_t>(batch.tokens.rows(0, own)), batches[i].tokens);
    EXPECT_EQ(to_host<int32_t>(batch.targets.rows(0, own)), batches[i].targets);
    EXPECT_EQ(to_host<int32_t>(batch.positions.rows(0, own)), batches[i].positions);
    const auto ends = static_cast<int64_t>(batches[i].offsets.size());
    EXPECT_EQ(to_host<int32_t>(batch.sequence_offsets.rows(0, ends)), batches[i].offsets);
    if (GetParam() == Device::kCpu) continue;
    EXPECT_EQ(batch.tokens.num_elements(), kMaxTokens);
    if (i > 0) {
      EXPECT_EQ(batch.tokens.data, place);
    }
    place = batch.tokens.data;
  }
}

TEST_P(BatchQueueTest, RefusesWhatDoesNotFit) {
  const Stream stream(GetParam());
  BatchQueue queue(GetParam(), kMaxTokens, kMaxSequence);
  expect_error("a batch is popped, none waits", [&] { queue.pop(stream); });
  const TinyBatch large({4, 4, 4, 4, 4, 1}, 9, 1), small({2}, 9, 1);
  expect_error("a batch of 21 tokens, planned were at most 20", [&] { queue.push(large.view()); });
  queue.push(small.view());
  queue.push(small.view());
  expect_error("a third batch is pushed", [&] { queue.push(small.view()); });
}

}  // namespace
}  // namespace mirabelle::testing
