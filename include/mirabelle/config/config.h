#pragma once

#include <string>
#include <vector>

#include "mirabelle/comm/parallel_config.h"
#include "mirabelle/config/backend.h"
#include "mirabelle/config/yaml_reader.h"
#include "mirabelle/data/data_config.h"
#include "mirabelle/evaluation/evaluation_config.h"
#include "mirabelle/model/transformer_config.h"
#include "mirabelle/tokenizer/co_occurrence.h"
#include "mirabelle/tokenizer/rq_vae_config.h"
#include "mirabelle/tokenizer/tokenizer_config.h"
#include "mirabelle/training/train_config.h"

namespace mirabelle {

/// Everything that can be configured; one file serves all executables.
struct Config {
  BackendConfig backend;
  DataConfig data;
  TokenizerConfig tokenizer;
  CoOccurrenceConfig co_occurrence;
  RqVaeConfig rq_vae;
  TransformerConfig model;
  TrainingConfig training;
  ParallelConfig parallel;
  EvaluationConfig evaluation;

  /// In the order of the file. They refer to this object.
  std::vector<ConfigSection> sections();
};

/// The resolved configuration as YAML, which --config reads again as it is.
std::string to_yaml(Config config);

/// Reads what `to_yaml` wrote, e.g. out of a checkpoint; `source` is for messages.
Config config_from_yaml(const std::string& text, const std::string& source);

}  // namespace mirabelle
