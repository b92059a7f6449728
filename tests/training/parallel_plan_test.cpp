// Numbers of a small model by hand. tests/training/plan_test.cpp compares plans with real runs.

#include "mirabelle/training/parallel_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "mirabelle/comm/collective_bytes.h"
#include "support/errors.h"

namespace mirabelle::testing {
namespace {

// Elements of the regions of the model below, by hand, of one rank that holds all of it.
constexpr int64_t kEmbedding = 128 * 64;
constexpr int64_t kBlock = (3 * 64 * 64) + (64 * 64) + (2 * 96 * 64) + (64 * 96);
constexpr int64_t kNorms = 5 * 64;
constexpr int64_t kAll = kEmbedding + 2 * kBlock + kNorms;
// Bytes of the hidden states of a part.
constexpr int64_t kHidden = 256 * 64 * 4;

PlannedRun small_run(int64_t world_size, int64_t tensor_parallel_size = 1) {
  PlannedRun run;
  run.training.micro_batch_tokens = 256;
  run.training.global_batch_tokens = 8 * 256;
  run.training.max_sequence_tokens = 64;
  run.parallel.tensor_parallel_size = tensor_parallel_size;
  run.model.hidden_size = 64;
  run.model.num_layers = 2;
  run.model.num_heads = run.model.num_kv_heads = 4;
  run.model.ffn_hidden_size = 96;
  run.vocab_size = 100;
  run.padded_vocab_size = 128;
  run.world_size = world_size;
  run.device = Device::kCpu;
  return run;
}

std::map<std::string, int64_t> memory_of(const PlannedRun& run) {
  const MemoryPlan plan = plan_memory(run);
  return {plan.items().begin(), plan.items().end()};
}

using Key = std::tuple<std::string, std::string, std::string, Overlap>;
using Sent = std::pair<int64_t, int64_t>;  // calls, bytes

std::map<Key, Sent> traffic_of(const PlannedRun& run) {
  std::map<Key, Sent> traffic;
  for (const PlannedTraffic& entry : plan_training(run).traffic) {
    traffic[{entry.group, entry.collective, entry.purpose, entry.overlap}] = {entry.calls,
                                                                              entry.bytes};
  }
  return traffic;
}

TEST(CollectiveBytesTest, CountsWhatOneRankSends) {
  EXPECT_EQ(all_reduce_bytes(8192, 4, 4, 0), 2 * 3 * 2048 * 4);
  // pieces of 700, then of 701, 701 and 699: what is the others', then the own piece to both
  EXPECT_EQ(all_reduce_bytes(2100, 4, 3, 0), 4 * (1400 + 2 * 700));
  EXPECT_EQ(all_reduce_bytes(2101, 4, 3, 0), 4 * (1400 + 2 * 701));
  EXPECT_EQ(all_reduce_bytes(2101, 4, 3, 2), 4 * (1402 + 2 * 699));
  EXPECT_EQ(all_reduce_bytes(1024, 4, 3, 1), 2 * 4096);  // small: all to all
  EXPECT_EQ(all_reduce_bytes(1, 8, 1, 0), 0);
  EXPECT_EQ(all_reduce_bytes(1025, 4, 2048, 2000), 4 * 1025);  // has no piece of its own
  EXPECT_EQ(reduce_scatter_bytes(100, 2, 5, 3), 160);
  EXPECT_EQ(all_gather_bytes(100, 2, 5, 3), 160);
  EXPECT_EQ(all_gather_bytes(0, 2, 5, 3), 0);
}

TEST(ParallelPlanTest, OfOneRankSendsNothing) {
  const PlannedRun run = small_run(1);
  const ParallelPlan plan = plan_training(run);
  EXPECT_TRUE(plan.traffic.empty());
  EXPECT_EQ(plan.num_parameters, kAll);
  EXPECT_EQ(plan.checkpoint_bytes, 12 * kAll);
  const auto memory = memory_of(run);
  EXPECT_EQ(memory.at("weights"), 4 * kAll);
  EXPECT_EQ(memory.at("gradients"), 4 * kAll);
  EXPECT_EQ(memory.at("optimizer"), 8 * kAll);
  EXPECT_EQ(memory.count("sums of gradients"), 0u);
  EXPECT_EQ(memory.count("libraries (estimate)"), 0u);
}

TEST(ParallelPlanTest, OfDataParallelRanks) {
  EXPECT_EQ(
      traffic_of(small_run(4)),
      (std::map<Key, Sent>{
          // 2 * 3/4 of 4 bytes; the norms are small
          {{"data-parallel", "all_reduce", "gradients", Overlap::kNone},
           {2, 6 * kEmbedding + 3 * 4 * kNorms}},
          {{"data-parallel", "all_reduce", "gradients", Overlap::kBackward}, {2, 6 * 2 * kBlock}},
          {{"world", "all_reduce", "the step's figures", Overlap::kNone}, {1, 3 * 14 * 8}}}));
}

TEST(ParallelPlanTest, EveryPartHasALossForEachLevel) {
  PlannedRun run = small_run(4);
  run.level_bounds = {1, 40, 80, 100};
  EXPECT_EQ(traffic_of(run).at({"world", "all_reduce", "the step's figures", Overlap::kNone}),
            Sent(1, 3 * (8 * 4 + 6) * 8));
  const int64_t activations = memory_of(run).at("activations");
  run.training.label_smoothing = 0.1;
  EXPECT_EQ(memory_of(run).at("activations"), activations);
  run.training.level_weights = {3, 2, 1};  // then every row has a weight
  EXPECT_EQ(memory_of(run).at("activations"), activations + 256 * 4);
  expect_error(ErrorKind::kUsage, "training.level_weights has 2 weights", [&] {
    run.training.level_weights = {3, 2};
    plan_training(run);
  });
}

TEST(ParallelPlanTest, OfShardedGradients) {
  PlannedRun run = small_run(4);
  run.training.dtype = "bfloat16";
  run.parallel.zero_stage = 2;
  // each of two parts is scattered, 3/4 of 4 bytes; weights of 2 bytes are gathered once
  const int64_t ends = kEmbedding + kNorms;
  EXPECT_EQ(
      traffic_of(run),
      (std::map<Key, Sent>{
          {{"data-parallel", "reduce_scatter", "gradients", Overlap::kNone}, {4, 2 * 3 * ends}},
          {{"data-parallel", "reduce_scatter", "gradients", Overlap::kBackward},
           {4, 2 * 3 * 2 * kBlock}},
          {{"data-parallel", "all_gather", "weights", Overlap::kNone}, {2, ends * 3 / 2}},
          {{"data-parallel", "all_gather", "weights", Overlap::kForward}, {2, 2 * kBlock * 3 / 2}},
          {{"world", "all_reduce", "gradient norm", Overlap::kNone}, {1, 3 * 8}},
          {{"world", "all_reduce", "the step's figures", Overlap::kNone}, {1, 3 * 14 * 8}}}));
  const auto memory = memory_of(run);
  EXPECT_EQ(memory.at("weights"), 2 * kAll);
  EXPECT_EQ(memory.at("gradients"), 4 * (ends + 2 * kBlock));  // two slots for two blocks
  EXPECT_EQ(memory.at("sums of gradients"), 4 * kAll / 4);
  EXPECT_EQ(memory.at("optimizer"), 12 * kAll / 4);
  EXPECT_EQ(plan_training(run).checkpoint_bytes, 12 * kAll / 4);
}

TEST(ParallelPlanTest, OfMuon) {
  PlannedRun run = small_run(4);
  run.training.optimizer = "muon";
  // a layer's directions, and for the largest matrix, gate and up, a copy and two squares of 64
  constexpr int64_t kWorkspace = kBlock + 2 * 96 * 64 + 2 * 64 * 64;
  EXPECT_EQ(memory_of(run).at("optimizer"), 4 * (2 * kAll + kWorkspace));
  const Key directions = {"data-parallel", "all_gather", "Muon's directions", Overlap::kNone};
  EXPECT_EQ(traffic_of(run).count(directions), 0u);  // every rank has all of them
  run.training.dtype = "bfloat16";
  run.parallel.zero_stage = 1;
  EXPECT_EQ(memory_of(run).at("optimizer"), 4 * (3 * kAll / 4 + kWorkspace));
  EXPECT_EQ(traffic_of(run).at(directions), Sent(2, 3 * 2 * kBlock));  // 3/4 of 4 bytes
}

TEST(ParallelPlanTest, OfSumsInATree) {
  PlannedRun run = small_run(2);
  run.training.reproducible = true;
  run.training.reproducible_shards = 2;
  run.parallel.zero_stage = 2;
  const auto traffic = traffic_of(run);
  // the sum of all four parts is scattered once
  EXPECT_EQ(traffic.at({"data-parallel", "reduce_scatter", "gradients", Overlap::kBackward}),
            Sent(2, 2 * 2 * kBlock));
  EXPECT_EQ(traffic.at({"world", "all_reduce", "gradient norm", Overlap::kNone}), Sent(2, 8 + 16));
  // and two partial sums wait, beside what is owned
  EXPECT_EQ(memory_of(run).at("sums of gradients"), 4 * (2 * kAll + kAll / 2));
}

TEST(ParallelPlanTest, OfTensorParallelRanks) {
  PlannedRun run = small_run(2, 2);
  const auto sums = [](int64_t calls) { return Sent(8 * calls, 8 * calls * kHidden); };
  std::map<Key, Sent> expected = {
      {{"tensor-parallel", "all_reduce", "embedding", Overlap::kNone}, sums(1)},
      {{"tensor-parallel", "all_reduce", "blocks, forward", Overlap::kNone}, sums(2 * 2)},
      {{"tensor-parallel", "all_reduce", "head", Overlap::kNone}, sums(1)},
      {{"tensor-parallel", "all_reduce", "blocks, backward", Overlap::kWeightGradients},
       sums(2 * 2)},
      {{"tensor-parallel", "all_reduce", "cross entropy", Overlap::kNone},
       {8 * 2, 8 * (256 + 2 * 256) * 4}},
      {{"tensor-parallel", "all_reduce", "gradient norm", Overlap::kNone}, {1, 8}},
      {{"world", "all_reduce", "the step's figures", Overlap::kNone}, {1, 14 * 8}}};
  EXPECT_EQ(traffic_of(run), expected);
  EXPECT_EQ(memory_of(run).at("weights"), 4 * ((kAll - kNorms) / 2 + kNorms));

  run.training.recompute = "block";  // the second sum of a block is not made again
  expected[{"tensor-parallel", "all_reduce", "blocks, again", Overlap::kNone}] = sums(2 * 1);
  EXPECT_EQ(traffic_of(run), expected);
}

TEST(ParallelPlanTest, OfSequenceParallelRanks) {
  PlannedRun run = small_run(2, 2);
  run.parallel.sequence_parallel = true;
  const auto phases = [](int64_t calls) { return Sent(8 * calls, 8 * calls * kHidden / 2); };
  const auto key = [](const char* collective, const char* purpose,
                      Overlap overlap = Overlap::kNone) {
    return Key("tensor-parallel", collective, purpose, overlap);
  };
  EXPECT_EQ(
      traffic_of(run),
      (std::map<Key, Sent>{
          {key("reduce_scatter", "embedding"), phases(1)},
          {key("all_gather", "blocks, forward"), phases(2 * 2)},
          {key("reduce_scatter", "blocks, forward"), phases(2 * 2)},
          {key("all_gather", "head"), phases(1)},
          {key("reduce_scatter", "head"), phases(1)},
          {key("all_gather", "blocks, backward"), phases(2 * 2)},
          {key("all_gather", "blocks, backward", Overlap::kWeightGradients), phases(2 * 2)},
          {key("reduce_scatter", "blocks, backward", Overlap::kWeightGradients), phases(2 * 2)},
          {key("all_gather", "embedding"), phases(1)},
          {key("all_reduce", "cross entropy"), {8 * 2, 8 * (256 + 2 * 256) * 4}},
          {key("all_reduce", "gradients of norms"), {1, 4 * kNorms}},
          {key("all_reduce", "gradient norm"), {1, 8}},
          {{"world", "all_reduce", "the step's figures", Overlap::kNone}, {1, 14 * 8}}}));
}

TEST(ParallelPlanTest, OfKeyValueHeadsThatRanksShare) {
  PlannedRun run = small_run(4, 4);
  run.model.num_kv_heads = 2;
  // two ranks hold each head: keys and values of head_dim 16, of two layers, once a step
  EXPECT_EQ(
      traffic_of(run).at({"key/value heads", "all_reduce", "gradients of copies", Overlap::kNone}),
      Sent(2, 2 * (2 * 16 * 64 * 4)));
}

TEST(ParallelPlanTest, PartsMayBeShorter) {
  const PlannedRun run = small_run(2, 2);
  const auto embedding = [&](const std::vector<int64_t>& part_tokens) {
    for (const PlannedTraffic& entry : plan_training(run, part_tokens).traffic) {
      if (entry.purpose == "embedding") return entry.bytes;
    }
    return int64_t{0};
  };
  EXPECT_EQ(embedding({100, 50}), 150 * 64 * 4);
  EXPECT_EQ(embedding({}), 0);
}

TEST(ParallelPlanTest, AGpuHasLibrariesAndScratch) {
  PlannedRun run = small_run(1);
  run.device = Device::kCuda;
  run.training.dtype = "bfloat16";
  EXPECT_EQ(memory_of(run).at("attention's scratch (at most)"), 4 * 256 * 64 * 4);
  EXPECT_GT(memory_of(run).at("libraries (estimate)"), 0);
}

TEST(ParallelPlanTest, RefusesSizesThatDoNotFit) {
  expect_error(ErrorKind::kUsage, "parallel.tensor_parallel_size 2 does not divide the 7 ranks",
               [] { plan_training(small_run(7, 2)); });
  expect_error(ErrorKind::kUsage, "is 8 parts, which must be divisible by the 3 data-parallel",
               [] { plan_training(small_run(3)); });
}

// 6 per matrix weight and token, and causal attention of four sequences of 64 tokens in a part.
constexpr double kPartFlops = 6.0 * (2 * kBlock + 100 * 64) * 256 + 6.0 * 2 * 64 * 4 * 64 * 64;

MachineRates slow_machine() {
  return {.flops_per_second = 2e9,
          .efficiency = 0.5,
          .memory_bytes_per_second = 1e9,
          .tensor_bytes_per_second = 1e6,
          .data_bytes_per_second = 1e6,
          .latency_seconds = 0};
}

TEST(StepEstimateTest, OfDataParallelRanks) {
  const PlannedRun run = small_run(4);
  MachineRates rates = slow_machine();
  StepEstimate estimate = estimate_step(run, plan_training(run), rates);
  EXPECT_EQ(estimate.tokens, 2048);
  EXPECT_DOUBLE_EQ(estimate.useful_flops, 8 * kPartFlops);
  EXPECT_NEAR(estimate.compute, 2 * kPartFlops / 1e9, 1e-9);
  // read and written: two moments; read twice and cleared: gradients; written: weights
  EXPECT_NEAR(estimate.optimizer, (2 * 8 + 3 * 4 + 4) * kAll / 1e9, 1e-9);
  EXPECT_EQ(estimate.tensor_parallel, 0);
  const double waits = (6 * kEmbedding + 12 * kNorms + 3 * 14 * 8) / 1e6;
  const double beside = 12 * kBlock / 1e6, backward = 2 * kPartFlops / 3 / 1e9;
  EXPECT_NEAR(estimate.data_parallel, waits + beside - backward, 1e-9);
  EXPECT_NEAR(estimate.utilisation(run, rates), 2 * kPartFlops / estimate.seconds() / 2e9, 1e-12);

  rates.data_bytes_per_second = 1e7;  // now all of it fits beside the backward pass
  estimate = estimate_step(run, plan_training(run), rates);
  EXPECT_NEAR(estimate.data_parallel, waits / 10, 1e-9);
  rates.latency_seconds = 0.01;  // of three that are waited for
  estimate = estimate_step(run, plan_training(run), rates);
  EXPECT_NEAR(estimate.data_parallel, waits / 10 + 0.03, 1e-9);
}

TEST(StepEstimateTest, OfTensorParallelRanks) {
  const PlannedRun run = small_run(2, 2);
  const StepEstimate estimate = estimate_step(run, plan_training(run), slow_machine());
  EXPECT_NEAR(estimate.compute, 8 * kPartFlops / 2e9, 1e-9);
  const double waits = (8 * (6 * kHidden + 3 * 256 * 4) + 8) / 1e6;
  // beside the products for the gradients of the QKV and the gate and up weights
  const double products = 8 * 2.0 * 256 * 64 * 2 * (192 + 192) / 2e9;
  EXPECT_NEAR(estimate.tensor_parallel, waits + 8 * 4 * kHidden / 1e6 - products, 1e-9);
  EXPECT_NEAR(estimate.data_parallel, 14 * 8 / 1e6, 1e-9);
}

TEST(StepEstimateTest, CountsMuonsProducts) {
  PlannedRun run = small_run(1);
  MachineRates rates = slow_machine();
  const auto seconds = [&] { return estimate_step(run, plan_training(run), rates).optimizer; };
  rates.memory_bytes_per_second = 1e30;
  EXPECT_NEAR(seconds(), 0, 1e-9);
  run.training.optimizer = "muon";
  rates.float32_flops_per_second = 1e9;
  // of a layer: 12 heads [16, 64], [64, 64], [192, 64] and [64, 96], each product 2 m n k
  const auto of_step = [](double k, double n) {
    return 2 * k * k * n + 2 * k * k * k + 2 * k * k * n;
  };
  const double flops =
      2 * 5 * (12 * of_step(16, 64) + of_step(64, 64) + of_step(64, 192) + of_step(64, 96));
  EXPECT_NEAR(seconds(), flops / 0.5e9, 1e-9);
}

TEST(StepEstimateTest, CountsRecomputation) {
  PlannedRun run = small_run(1);
  const double attention = 2.0 * 2 * 64 * 4 * 64 * 64;
  run.training.recompute = "attention";
  EXPECT_NEAR(estimate_step(run, plan_training(run), slow_machine()).compute,
              8 * (kPartFlops + attention) / 1e9, 1e-9);
  run.training.recompute = "block";  // but for the last product
  const double block = 2.0 * (2 * kBlock - 2 * 64 * 96) * 256 + attention;
  const StepEstimate estimate = estimate_step(run, plan_training(run), slow_machine());
  EXPECT_NEAR(estimate.compute, 8 * (kPartFlops + block) / 1e9, 1e-9);
  EXPECT_DOUBLE_EQ(estimate.useful_flops, 8 * kPartFlops);
}

}  // namespace
}  // namespace mirabelle::testing
