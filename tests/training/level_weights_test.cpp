#include "mirabelle/training/level_weights.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/backends.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

TEST(LevelWeightsTest, AreAllOneByDefault) {
  EXPECT_EQ(level_weights({}, 3, {}), Values(3, 1.0));
  EXPECT_EQ(level_weights({}, 1, {}), Values(1, 1.0));
}

TEST(LevelWeightsTest, HaveTheRatiosOfTheConfigurationAndAMeanOfOne) {
  TrainingConfig config;
  config.level_weights = {6, 2, 0, 8};
  expect_near(level_weights(config, 4, {}), {1.5, 0.5, 0, 2}, 1e-15, "weights");
}

TEST(LevelWeightsTest, ACodeCountsInEveryPrefixThatItIsIn) {
  TrainingConfig config;
  config.prefix_loss = "adaptive";
  config.prefix_loss_weight = 0.5;
  // the prefixes alike: 1 + 0.5 (1 + 1/2 + 1/3) / 3, 1 + 0.5 (1/2 + 1/3) / 3, 1 + 0.5 (1/3) / 3
  expect_near(level_weights(config, 3, {}), {47.0 / 36, 41.0 / 36, 38.0 / 36}, 1e-15, "weights");
  config.level_weights = {3, 1};
  expect_near(level_weights(config, 2, {0.2, 0.8}), {1.5 + 0.5 * 0.6, 0.5 + 0.5 * 0.4}, 1e-15,
              "weights");
}

TEST(LevelWeightsTest, PrefixesGainByTheirLossesFromStepToStep) {
  const double rate = std::log(2);
  Values weights = adapted_prefix_weights({}, {1, 3}, rate);  // losses of prefixes: 1 and 2
  expect_near(weights, {1.0 / 3, 2.0 / 3}, 1e-15, "after one step");
  weights = adapted_prefix_weights(weights, {0, 6}, rate);  // 0 and 3: 1/3 to 16/3
  expect_near(weights, {1.0 / 17, 16.0 / 17}, 1e-15, "after two steps");
  weights = adapted_prefix_weights(weights, {4, 0}, rate);  // 4 and 2: 16/17 to 64/17
  expect_near(weights, {0.2, 0.8}, 1e-15, "after three steps");
  EXPECT_EQ(adapted_prefix_weights({0.25, 0.75}, {1, 3}, 0), (Values{0.25, 0.75}));
}

TEST(LevelWeightsTest, WhatHasFallenGainsAgain) {
  Values weights;
  for (int step = 0; step < 100; ++step) weights = adapted_prefix_weights(weights, {0, 4}, 1);
  expect_near(weights, {1e-6, 1 - 1e-6}, 1e-11, "the prefix that is known");
  for (int step = 0; step < 5; ++step) weights = adapted_prefix_weights(weights, {4, 0}, 1);
  const double ratio = 1e-6 * std::exp(5 * 2.0);
  expect_near(weights, {ratio / (1 + ratio), 1 / (1 + ratio)}, 1e-7, "after five steps");
}

TEST(LevelWeightsTest, LargeLossesDoNotOverflow) {
  expect_near(adapted_prefix_weights({}, {1e5, 1e5}, 1), {0.5, 0.5}, 1e-15, "alike");
  expect_near(adapted_prefix_weights({}, {0, 1e5}, 1), {2e-6 / (1 + 2e-6), 1 / (1 + 2e-6)}, 1e-15,
              "one far worse");  // 1e-6 beside 1/2
  expect_near(adapted_prefix_weights({1, 0}, {0, 1e5}, 1), {0.5, 0.5}, 1e-15,
              "a weight of 0 in a checkpoint");  // 1e-6 each
}

}  // namespace
}  // namespace mirabelle::testing
