#include "mirabelle/config/config.h"

#include <gtest/gtest.h>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

TEST(ConfigTest, DefaultsPassTheirOwnChecks) {
  Config config;
  for (const ConfigSection& section : config.sections()) EXPECT_NO_THROW(section.check());
}

TEST(ConfigTest, HoldsTheKeysThatScriptsRelyOn) {
  Config config;
  for (const char* assignment : {"data.corpus=c",
                                 "tokenizer.file=t",
                                 "training.output=o",
                                 "training.max_steps=1",
                                 "training.max_wall_seconds=1",
                                 "training.seed=1",
                                 "training.micro_batch_tokens=1024",
                                 "training.global_batch_tokens=8192",
                                 "training.max_sequence_tokens=512",
                                 "data.history_length=3",
                                 "training.learning_rate=1e-3",
                                 "model.hidden_size=64",
                                 "model.num_layers=1",
                                 "model.num_heads=2",
                                 "model.num_kv_heads=1",
                                 "model.ffn_hidden_size=96",
                                 "parallel.tensor_parallel_size=1",
                                 "evaluation.split=test",
                                 "evaluation.beam_size=10",
                                 "evaluation.checkpoint=k"}) {
    EXPECT_NO_THROW(apply_override(assignment, config.sections())) << assignment;
  }
  EXPECT_EQ(config.data.corpus, "c");
  EXPECT_EQ(config.training.learning_rate, 1e-3);
  EXPECT_EQ(config.model.num_kv_heads, 1);
}

TEST(ConfigTest, TheBackendStandsOutsideTheSections) {
  Config config;
  EXPECT_EQ(config.backend.backend, "auto");
  read_yaml_text("backend: cpu\ndata: {corpus: c}", "config.yaml", config.sections());
  EXPECT_EQ(config.backend.backend, "cpu");
  EXPECT_EQ(config.data.corpus, "c");
  apply_override("backend=cuda", config.sections());
  EXPECT_EQ(config.backend.backend, "cuda");
  EXPECT_TRUE(to_yaml(config).starts_with("backend: cuda\n"));
  EXPECT_EQ(config_from_yaml(to_yaml(config), "config.yaml").backend.backend, "cuda");

  const auto message_of = [](const auto& call) -> std::string {
    try {
      call();
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_EQ(message_of([] { config_from_yaml("backend: gpu", "config.yaml"); }),
            "backend must be auto, cpu or cuda, not 'gpu'");
  EXPECT_EQ(message_of([] { config_from_yaml("backend: [cpu]", "config.yaml"); }),
            "config.yaml:1: backend wants text, not [\"cpu\"]");
  EXPECT_EQ(
      message_of([&] { apply_override("backnd=cpu", config.sections()); }),
      "--set backnd=cpu: wanted section.key=value such as training.learning_rate=3e-4; did you "
      "mean backend?");
  EXPECT_NE(message_of([] {
              config_from_yaml("backen: cpu", "config.yaml");
            }).find("did you mean backend?"),
            std::string::npos);
}

TEST(ConfigTest, TheWrittenConfigurationReadsBackTheSame) {
  Config config;
  config.data.corpus = "runs/my corpus: 1";
  config.model.hidden_size = 192;
  config.training.learning_rate = 1.0 / 3;
  config.training.seed = 77;
  const std::string text = to_yaml(config);
  const Config copy = config_from_yaml(text, "config.yaml");
  EXPECT_EQ(to_yaml(copy), text);
  EXPECT_EQ(copy.data.corpus, config.data.corpus);
  EXPECT_EQ(copy.training.learning_rate, 1.0 / 3);
  EXPECT_EQ(copy.training.seed, 77);
}

TEST(ConfigTest, ChecksWhatItReads) {
  EXPECT_THROW(config_from_yaml("model: {hidden_size: 130}", "config.yaml"), Error);
  EXPECT_THROW(config_from_yaml("parallel: {tensor_parallel_size: 0}", "config.yaml"), Error);
  EXPECT_THROW(config_from_yaml("parallel: {zero_stage: 3}", "config.yaml"), Error);
  EXPECT_THROW(config_from_yaml("parallel: {fault_timeout_seconds: -1}", "config.yaml"), Error);
}

TEST(ConfigTest, SectionsReferToTheirConfig) {
  Config config;
  const std::vector<ConfigSection> sections = config.sections();
  read_yaml_text("model: {num_layers: 9}", "config.yaml", sections);
  EXPECT_EQ(config.model.num_layers, 9);
}

}  // namespace
}  // namespace mirabelle
