#include "mirabelle/model/rotary_scaling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace mirabelle {
namespace {

constexpr double kTurn = 2 * std::numbers::pi;

TransformerConfig config(const std::string& scaling) {
  TransformerConfig config;
  config.hidden_size = 16;
  config.num_heads = config.num_kv_heads = 2;  // heads of 8 features, so four frequencies
  config.rope_theta = 10000;
  config.rope_scaling = scaling;
  config.rope_factor = 4;
  config.rope_original_tokens = 100;
  config.rope_low_rotations = 0.1;
  config.rope_high_rotations = 10;
  return config;
}

void expect_frequencies(const RotaryScaling& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.frequencies.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual.frequencies[i], expected[i], 1e-12 * expected[i]) << i;
  }
}

TEST(RotaryScalingTest, NoneAndLinear) {
  const std::vector<double> plain = {1, 0.1, 0.01, 0.001};
  expect_frequencies(rotary_scaling(config("none")), plain);
  EXPECT_EQ(rotary_scaling(config("none")).amplitude, 1);
  expect_frequencies(rotary_scaling(config("linear")), {0.25, 0.025, 0.0025, 0.00025});
}

// In 100 tokens the features turn 15.9, 1.59, 0.159 and 0.0159 times.
TEST(RotaryScalingTest, Llama3MixesBetweenTheTwoNumbersOfTurns) {
  const auto mixed = [](double frequency) {
    const double kept = (100 * frequency / kTurn - 0.1) / (10 - 0.1);
    return frequency * (kept + (1 - kept) / 4);
  };
  const RotaryScaling result = rotary_scaling(config("llama3"));
  expect_frequencies(result, {1, mixed(0.1), mixed(0.01), 0.001 / 4});
  EXPECT_EQ(result.amplitude, 1);
}

// 10 turns are where theta^(-i / 4) = 10 * 2 pi / 100, at i = 0.2; 0.1 turns at i = 2.2. So the
// ramp goes from feature 0 to feature 3.
TEST(RotaryScalingTest, YarnMixesByTheNumberOfTheFeature) {
  const auto mixed = [](double frequency, double kept) {
    return frequency * (kept + (1 - kept) / 4);
  };
  const RotaryScaling result = rotary_scaling(config("yarn"));
  expect_frequencies(result, {1, mixed(0.1, 2.0 / 3), mixed(0.01, 1.0 / 3), 0.001 / 4});
  EXPECT_NEAR(result.amplitude, 0.1 * std::log(4) + 1, 1e-12);
}

TEST(RotaryScalingTest, RefusesWhatIsNotKnownOrMakesNoSense) {
  const auto message = [](auto change) -> std::string {
    TransformerConfig changed = config("yarn");
    change(changed);
    try {
      changed.check();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message([](TransformerConfig&) {}), "no error");
  EXPECT_NE(message([](auto& c) { c.rope_scaling = "dynamic"; }).find("not 'dynamic'"),
            std::string::npos);
  EXPECT_NE(message([](auto& c) { c.rope_factor = 0.5; }).find("model.rope_factor"),
            std::string::npos);
  EXPECT_NE(message([](auto& c) { c.rope_original_tokens = 0; }).find("rope_original_tokens > 0"),
            std::string::npos);
  EXPECT_NE(message([](auto& c) { c.rope_low_rotations = 10; }).find("got 100, 10 and 10"),
            std::string::npos);
}

}  // namespace
}  // namespace mirabelle
