#pragma once

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>

#include "mirabelle/comm/parallel_context.h"
#include "mirabelle/config/backend.h"
#include "mirabelle/config/config.h"
#include "mirabelle/config/preflight.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/core/memory_plan.h"
#include "mirabelle/evaluation/beam_search.h"
#include "mirabelle/evaluation/exact_scoring.h"
#include "mirabelle/kernels/convert.h"
#include "mirabelle/tokenizer/tokenizer_file.h"
#include "mirabelle/training/checkpoint.h"

namespace mirabelle {

/// Replaces `config` by the one that evaluation.checkpoint was trained with, if it names any: the
/// base of a command line (CommandLine::set_base).
inline void take_checkpoint_config(Config& config) {
  if (config.evaluation.checkpoint.empty()) return;
  const std::filesystem::path folder = find_checkpoint(config.evaluation.checkpoint);
  config = config_from_yaml(read_checkpoint_config(folder), folder.string());
  config.parallel = {};  // any layout reads any other's checkpoint
}

/// A checkpoint, and the corpus that it recommends for, ready to rank items.
class TrainedModel {
 public:
  /// `config` is resolved: the checkpoint's own with overrides. Throws a kUsage Error if it wants
  /// another model than the checkpoint's or more memory than there is, a kData Error if the corpus
  /// has other items. Collective.
  TrainedModel(const Config& config, Device device, const Communicator& world)
      : communicator_(world, device, config.parallel, config.training.reproducible),
        ranks_(checked_groups(communicator_.get(), config.parallel.tensor_parallel_size, device)),
        share_(model_share(config.training, config.parallel, world.rank(), world.size())),
        stream_(device),
        available_bytes_(available_bytes(device) / ranks_on_device(device, world)),
        folder_(find_checkpoint(config.evaluation.checkpoint)),
        corpus_(config.data.corpus),
        tokenizer_(read_tokenizer_file(folder_ / "tokenizer.h5")),
        model_(checked_model(config), tokenizer_.ids.vocab_size(),
               tokenizer_.ids.padded_vocab_size(), config.evaluation.model_dtype(),
               model_limits(config), device, share_, &ranks_.tensor()) {
    check_items();
    read_weights();
    const EvaluationConfig& evaluation = config.evaluation;
    if (evaluation.mode == "exact") {
      scorer_ = std::make_unique<ExactScorer>(model_, tokenizer_.ids, config.data.history_length,
                                              batch_tokens(config));
      list_length_ = evaluation.beam_size;
    } else {
      search_ = std::make_unique<BeamSearch>(model_, tokenizer_.ids, search_limits(config));
    }
  }
  TrainedModel(const TrainedModel&) = delete;
  TrainedModel& operator=(const TrainedModel&) = delete;

  const std::filesystem::path& folder() const { return folder_; }  ///< of the checkpoint
  const Corpus& corpus() const { return corpus_; }
  const TokenizerFile& tokenizer() const { return tokenizer_; }
  /// The ranks of a tensor-parallel group rank items together, for the same users.
  const ParallelContext& ranks() const { return ranks_; }

  /// Refers to this object.
  Recommender recommender() {
    return [this](std::span<const RecommendationQuery> queries) {
      return search_ ? search_->search(queries, stream_)
                     : scorer_->rank(queries, list_length_, stream_);
    };
  }

 private:
  /// Beam search has activations of its own; exact scoring fills batches of the model's.
  int64_t batch_tokens(const Config& config) const {
    const int64_t one = max_search_tokens(tokenizer_.ids, config.data.history_length);
    return config.evaluation.mode == "exact" ? std::max<int64_t>(one, 8192) : one;
  }

  const TransformerConfig& checked_model(const Config& config) const {
    const auto text = [](TransformerConfig model) {
      return to_yaml({config_section("model", model)}, false);
    };
    const Config saved = config_from_yaml(read_checkpoint_config(folder_), folder_.string());
    MIRABELLE_CHECK_USAGE(text(config.model) == text(saved.model),
                          "the section `model` is not the ", "one that ", folder_.string(),
                          " was trained with; leave it out");
    check_memory(config);
    return config.model;
  }

  BeamSearch::Limits search_limits(const Config& config) const {
    return {config.evaluation.beam_size, config.evaluation.batch_users, config.data.history_length};
  }

  Transformer::Limits model_limits(const Config& config) const {
    return {batch_tokens(config), max_search_tokens(tokenizer_.ids, config.data.history_length),
            /*training=*/false};
  }

  /// Throws if there is too little, before anything is allocated.
  void check_memory(const Config& config) const {
    const Transformer model = Transformer::sketch(
        config.model, tokenizer_.ids.vocab_size(), tokenizer_.ids.padded_vocab_size(),
        config.evaluation.model_dtype(), model_limits(config), stream_.device(), share_);
    MemoryPlan plan;
    plan.add("weights", model.weight_bytes());
    plan.add("weights as they are stored",
             model.layout().num_elements() * size_in_bytes(wide(model.dtype())));
    plan.add("activations", model.activation_bytes());
    if (config.evaluation.mode == "beam") {
      plan.add("beam search",
               BeamSearch::planned_bytes(model, tokenizer_.ids, search_limits(config)));
    }
    plan.check_fits(available_bytes_, stream_.device(),
                    "a lower evaluation.batch_users or beam_size needs less");
  }

  void read_weights() const {
    const Buffer host({model_.layout().num_elements()}, wide(model_.dtype()));
    read_checkpoint_tensors(folder_, model_.layout(),
                            {.weights = host.view(), .exp_avg = {}, .exp_avg_sq = {}},
                            ranks_.world());
    const Buffer values(host.view().shape, host.view().dtype, model_.device());
    copy(values.view(), host.view(), stream_);
    round_to(model_.weights(), values.view(), stream_);
    stream_.synchronize();
  }

  void check_items() const {
    mirabelle::check_items(tokenizer_.item_ids, corpus_, folder_.string());
    if (tokenizer_.split_hash != corpus_.split_hash()) {
      spdlog::warn("the tokenizer was built on another split (hash {}) than that of {} (hash {})",
                   tokenizer_.split_hash, corpus_.folder().string(), corpus_.split_hash());
    }
  }

  DeviceCommunicator communicator_;
  ParallelContext ranks_;
  ModelShare share_;
  Stream stream_;
  int64_t available_bytes_;  // for this rank
  std::filesystem::path folder_;
  Corpus corpus_;
  TokenizerFile tokenizer_;
  Transformer model_;
  std::unique_ptr<BeamSearch> search_;
  std::unique_ptr<ExactScorer> scorer_;
  int64_t list_length_ = 0;
};

}  // namespace mirabelle
