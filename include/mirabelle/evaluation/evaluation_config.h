#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/dtype.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

struct EvaluationConfig {
  std::string checkpoint;
  std::string split = "test";
  std::string mode = "beam";
  std::string dtype = "float32";
  int64_t beam_size = 50;
  std::vector<int64_t> top_k = {5, 10};
  bool exclude_history = true;
  bool baselines = true;
  int64_t max_users = 0;
  int64_t batch_users = 32;
  int64_t bootstrap_samples = 1000;
  int64_t seed = 0;

  DType model_dtype() const { return mirabelle::model_dtype("evaluation.dtype", dtype); }

  void visit(ConfigFields& fields) {
    fields.field("checkpoint", checkpoint,
                 "output folder of mirabelle-train (its best checkpoint), or one checkpoint");
    fields.field("split", split, "targets to predict: 'validation' or 'test'");
    fields.field("mode", mode,
                 "'beam' search, or 'exact': every item is scored by full forward passes (slow)");
    fields.field(
        "dtype", dtype,
        "of weights and activations while decoding: float32 or bfloat16 (faster on a GPU)");
    fields.field("beam_size", beam_size,
                 "prefixes kept at each level, and length of a ranked list");
    fields.field("top_k", top_k, "list lengths K of recall@K, hit_rate@K and ndcg@K");
    fields.field("exclude_history", exclude_history,
                 "never recommend an item of the user's whole history before the target");
    fields.field("baselines", baselines, "also evaluate popularity and last-item Markov counts");
    fields.field("max_users", max_users, "evaluate a random sample of so many users; 0 = all");
    fields.field("batch_users", batch_users, "users that are decoded together");
    fields.field("bootstrap_samples", bootstrap_samples, "resamplings behind the intervals");
    fields.field("seed", seed, "of the sample of users and of the resamplings");
  }

  void check() const {
    MIRABELLE_CHECK_USAGE(split == "validation" || split == "test",
                          "evaluation.split must be 'validation' or 'test', not '", split, "'");
    MIRABELLE_CHECK_USAGE(mode == "beam" || mode == "exact",
                          "evaluation.mode must be 'beam' or 'exact', not '", mode, "'");
    model_dtype();
    MIRABELLE_CHECK_USAGE(!top_k.empty() && std::is_sorted(top_k.begin(), top_k.end()) &&
                              std::adjacent_find(top_k.begin(), top_k.end()) == top_k.end() &&
                              top_k.front() > 0,
                          "evaluation.top_k must be an ascending list of positive lengths");
    MIRABELLE_CHECK_USAGE(beam_size >= top_k.back(), "evaluation.beam_size ", beam_size,
                          " is narrower than the largest K of evaluation.top_k, ", top_k.back());
    MIRABELLE_CHECK_USAGE(max_users >= 0, "evaluation.max_users must not be negative, it is ",
                          max_users);
    MIRABELLE_CHECK_USAGE(batch_users > 0, "evaluation.batch_users must be positive, not ",
                          batch_users);
    MIRABELLE_CHECK_USAGE(bootstrap_samples >= 0,
                          "evaluation.bootstrap_samples must not be negative, it is ",
                          bootstrap_samples);
  }
};

}  // namespace mirabelle
