#include "mirabelle/training/train_config.h"

#include <cmath>

#include "mirabelle/core/error.h"
#include "mirabelle/training/flat_partition.h"

namespace mirabelle {

void TrainingConfig::visit(ConfigFields& fields) {
  fields.field("output", output, "folder for configuration, metrics and checkpoints");
  fields.field("max_steps", max_steps, "optimizer steps; the learning-rate schedule ends there");
  fields.field("max_wall_seconds", max_wall_seconds,
               "stop after this long, with a checkpoint to go on from; 0 = no limit");
  fields.field(
      "fit_steps_to_wall_time", fit_steps_to_wall_time,
      "time the first steps, then lower max_steps to what max_wall_seconds allows; when the "
      "time is up the run is over");
  fields.field("seed", seed, "of weights, dropout and data order");
  fields.field("dtype", dtype,
               "of weights and activations: float32, or bfloat16 with float32 master "
               "weights, sums and gradients");
  fields.field(
      "init_from", init_from,
      "weights to begin with, and a fresh optimizer: a checkpoint, a training output, or a "
      "folder of Hugging Face; tokenizer.file may know more items than theirs");
  fields.field("initial_embedding", initial_embedding,
               "rows of the codes before training: random, or features: projections of what the "
               "tokenizer knows of the items that carry a code, so that like codes start alike");
  fields.field("cuda_graph", cuda_graph,
               "on a GPU, launch a micro-batch as one recorded graph; false: kernel by kernel");
  fields.field("reproducible", reproducible,
               "the same bits for every layout: any number of data- and tensor-parallel ranks, any "
               "parallel.zero_stage, sequence_parallel and recompute; slower");
  fields.field("reproducible_shards", reproducible_shards,
               "with reproducible: shards that split sums are made of, a power of two that "
               "parallel.tensor_parallel_size divides");
  fields.field(
      "recompute", recompute,
      "activations that the backward pass computes again, for less memory: none, attention "
      "(and norms and SwiGLU), or block (all but a block's input)");
  fields.field("micro_batch_tokens", micro_batch_tokens,
               "tokens of one part: what one forward and backward pass takes");
  fields.field("global_batch_tokens", global_batch_tokens,
               "tokens of an optimizer step over all ranks; a multiple of micro_batch_tokens");
  fields.field("max_sequence_tokens", max_sequence_tokens, "longest training sequence");
  fields.field("optimizer", optimizer,
               "adamw, or muon: Muon for the matrices of the layers, AdamW for embedding, head and "
               "norms");
  fields.field("learning_rate", learning_rate, "highest learning rate");
  fields.field("min_learning_rate", min_learning_rate, "lowest learning rate after the warm-up");
  fields.field("warmup_steps", warmup_steps, "steps of linear growth to learning_rate");
  fields.field("schedule", schedule, "after the warm-up: cosine, constant or inverse_sqrt");
  fields.field("weight_decay", weight_decay, "decay of matrices (norms are not decayed)");
  fields.field("beta1", beta1, "AdamW: decay of the mean gradient");
  fields.field("beta2", beta2, "AdamW: decay of the mean squared gradient");
  fields.field("epsilon", epsilon, "AdamW: added to the root of the mean squared gradient");
  fields.field("muon_learning_rate", muon_learning_rate,
               "Muon: highest learning rate, of the same schedule; 0 = learning_rate");
  fields.field("muon_momentum", muon_momentum, "Muon: decay of the sum of gradients");
  fields.field("max_grad_norm", max_grad_norm, "clip the global gradient norm; 0 = never");
  fields.field(
      "bad_step", bad_step,
      "when a step's loss or gradient norm is not finite, or a spike: skip it (weights and "
      "optimizer stay as they are), rollback to the newest checkpoint and go on with the "
      "data after the step, or stop");
  fields.field("spike_factor", spike_factor,
               "a gradient norm above this many times its running mean is a spike; 0 = none is, "
               "since max_grad_norm limits what it can do");
  fields.field("spike_warmup_steps", spike_warmup_steps, "good steps before there are spikes");
  fields.field("max_bad_steps", max_bad_steps,
               "stop after more bad steps than this in a row, or rollbacks to one checkpoint");
  fields.field("label_smoothing", label_smoothing,
               "part of each target's probability that all codes of its level share; reported "
               "losses are without smoothing and weights");
  fields.field("level_weights", level_weights,
               "weight of the loss of each code of a semantic ID (a disambiguation code counts); "
               "only their ratios matter; [] = all alike");
  fields.field("prefix_loss", prefix_loss,
               "none, or adaptive: add the mean losses of an item's first 1, 2, ... codes, with "
               "weights that follow the worst of them (APAO, Yu et al. 2026)");
  fields.field("prefix_loss_weight", prefix_loss_weight,
               "of that, beside the sum of an item's losses");
  fields.field("prefix_adaptation_rate", prefix_adaptation_rate,
               "how fast the weights follow: after every step each is multiplied by exp(rate * the "
               "prefix's loss), then all are scaled to a sum of 1");
  fields.field("log_every_steps", log_every_steps, "steps between lines of metrics.jsonl");
  fields.field(
      "peak_tflops", peak_tflops,
      "of a rank's device in training.dtype, to log the useful part of it (mfu); 0 = what is "
      "known of the GPU, if anything");
  fields.field("validation_every_steps", validation_every_steps, "0 = never");
  fields.field("validation_users", validation_users, "users of a validation during training");
  fields.field("validation_beam_size", validation_beam_size, "beams of such a validation");
  fields.field("early_stop_patience", early_stop_patience,
               "stop after so many validations without a better NDCG@10; 0 = never");
  fields.field("checkpoint_every_steps", checkpoint_every_steps, "0 = only at the end");
  fields.field("keep_checkpoints", keep_checkpoints, "newest checkpoints to keep, beside the best");
  fields.field("sentinel_every_steps", sentinel_every_steps,
               "compare the parameters that ranks hold in common, bit by bit; 0 = never");
  fields.field("resume", resume, "go on from the newest checkpoint in output, if there is one");
}

void TrainingConfig::check() const {
  MIRABELLE_CHECK_USAGE(max_steps >= 0, "training.max_steps must not be negative, is ", max_steps);
  MIRABELLE_CHECK_USAGE(!fit_steps_to_wall_time || max_wall_seconds > 0,
                        "training.fit_steps_to_wall_time needs training.max_wall_seconds");
  model_dtype();
  MIRABELLE_CHECK_USAGE(micro_batch_tokens > 0, "training.micro_batch_tokens must be positive, is ",
                        micro_batch_tokens);
  MIRABELLE_CHECK_USAGE(global_batch_tokens > 0 && global_batch_tokens % micro_batch_tokens == 0,
                        "training.global_batch_tokens ", global_batch_tokens,
                        " must be a positive multiple of training.micro_batch_tokens ",
                        micro_batch_tokens);
  MIRABELLE_CHECK_USAGE(max_sequence_tokens > 1 && max_sequence_tokens <= micro_batch_tokens,
                        "training.max_sequence_tokens ", max_sequence_tokens,
                        " must be from 2 to training.micro_batch_tokens ", micro_batch_tokens);
  MIRABELLE_CHECK_USAGE(initial_embedding == "random" || initial_embedding == "features",
                        "training.initial_embedding must be random or features, not '",
                        initial_embedding, "'");
  MIRABELLE_CHECK_USAGE(init_from.empty() || initial_embedding == "random",
                        "training.initial_embedding features is for models that begin anew, "
                        "training.init_from gives weights");
  MIRABELLE_CHECK_USAGE(optimizer == "adamw" || optimizer == "muon",
                        "training.optimizer must be adamw or muon, not '", optimizer, "'");
  MIRABELLE_CHECK_USAGE(
      learning_rate > 0 && min_learning_rate >= 0 && min_learning_rate <= learning_rate,
      "wanted 0 <= training.min_learning_rate <= training.learning_rate, got ", min_learning_rate,
      " and ", learning_rate);
  MIRABELLE_CHECK_USAGE(
      schedule == "cosine" || schedule == "constant" || schedule == "inverse_sqrt",
      "training.schedule must be cosine, constant or inverse_sqrt, not '", schedule, "'");
  MIRABELLE_CHECK_USAGE(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1 && epsilon > 0,
                        "wanted training.beta1 and beta2 in [0, 1) and epsilon > 0, got ", beta1,
                        ", ", beta2, " and ", epsilon);
  MIRABELLE_CHECK_USAGE(muon_learning_rate >= 0 && muon_momentum >= 0 && muon_momentum < 1,
                        "wanted training.muon_learning_rate >= 0 and muon_momentum in [0, 1), got ",
                        muon_learning_rate, " and ", muon_momentum);
  MIRABELLE_CHECK_USAGE(weight_decay >= 0 && max_grad_norm >= 0 && max_wall_seconds >= 0,
                        "training.weight_decay, max_grad_norm and max_wall_seconds must not be "
                        "negative");
  MIRABELLE_CHECK_USAGE(peak_tflops >= 0 && std::isfinite(peak_tflops),
                        "training.peak_tflops must not be negative, is ", peak_tflops);
  MIRABELLE_CHECK_USAGE(bad_step == "skip" || bad_step == "rollback" || bad_step == "stop",
                        "training.bad_step must be skip, rollback or stop, not '", bad_step, "'");
  MIRABELLE_CHECK_USAGE(spike_factor == 0 || (spike_factor > 1 && std::isfinite(spike_factor)),
                        "training.spike_factor must be 0 or above 1, is ", spike_factor);
  MIRABELLE_CHECK_USAGE(spike_warmup_steps >= 1 && max_bad_steps >= 0,
                        "wanted training.spike_warmup_steps >= 1 and max_bad_steps >= 0, got ",
                        spike_warmup_steps, " and ", max_bad_steps);
  MIRABELLE_CHECK_USAGE(label_smoothing >= 0 && label_smoothing < 1,
                        "training.label_smoothing must be from 0 to below 1, is ", label_smoothing);
  double sum_of_weights = 0;
  for (const double weight : level_weights) {
    MIRABELLE_CHECK_USAGE(weight >= 0, "training.level_weights must not be negative, got ", weight);
    sum_of_weights += weight;
  }
  MIRABELLE_CHECK_USAGE(
      level_weights.empty() || (sum_of_weights > 0 && std::isfinite(sum_of_weights)),
      "training.level_weights must be finite, and not all 0");
  MIRABELLE_CHECK_USAGE(prefix_loss == "none" || prefix_loss == "adaptive",
                        "training.prefix_loss must be none or adaptive, not '", prefix_loss, "'");
  MIRABELLE_CHECK_USAGE(prefix_loss_weight >= 0 && std::isfinite(prefix_loss_weight) &&
                            prefix_adaptation_rate >= 0 && std::isfinite(prefix_adaptation_rate),
                        "wanted training.prefix_loss_weight and prefix_adaptation_rate >= 0, got ",
                        prefix_loss_weight, " and ", prefix_adaptation_rate);
  MIRABELLE_CHECK_USAGE(warmup_steps >= 0 && log_every_steps > 0 && validation_every_steps >= 0 &&
                            validation_users > 0 && validation_beam_size >= 10 &&
                            early_stop_patience >= 0 && checkpoint_every_steps >= 0 &&
                            keep_checkpoints >= 1 && sentinel_every_steps >= 0,
                        "training: wanted log_every_steps, validation_users, keep_checkpoints > 0, "
                        "validation_beam_size >= 10 and the other counts >= 0");
  model_recompute();
  const auto is_power_of_two = [](int64_t n) { return n > 0 && (n & (n - 1)) == 0; };
  MIRABELLE_CHECK_USAGE(is_power_of_two(reproducible_shards),
                        "training.reproducible_shards must be a power of two, not ",
                        reproducible_shards);
  MIRABELLE_CHECK_USAGE(!reproducible || is_power_of_two(num_parts()),
                        "training.reproducible wants a power of two of parts; "
                        "training.global_batch_tokens / training.micro_batch_tokens is ",
                        num_parts());
  MIRABELLE_CHECK_USAGE(!output.empty(), "training.output must name a folder");
}

Recompute TrainingConfig::model_recompute() const {
  MIRABELLE_CHECK_USAGE(recompute == "none" || recompute == "attention" || recompute == "block",
                        "training.recompute must be none, attention or block, not '", recompute,
                        "'");
  return recompute == "none"        ? Recompute::kNone
         : recompute == "attention" ? Recompute::kAttention
                                    : Recompute::kBlock;
}

ModelShare model_share(const TrainingConfig& training, const ParallelConfig& parallel, int64_t rank,
                       int64_t world_size) {
  const int64_t size = parallel.tensor_parallel_size;
  MIRABELLE_CHECK_USAGE(world_size % size == 0, "parallel.tensor_parallel_size ", size,
                        " does not divide the ", world_size, " ranks");
  ModelShare share;
  share.num_shards = training.reproducible ? training.reproducible_shards : size;
  share.tensor_parallel_size = size;
  share.tensor_parallel_rank = rank % size;
  share.sequence_parallel = parallel.sequence_parallel;
  share.reproducible = training.reproducible;
  share.flat_multiple = FlatPartition::flat_multiple(world_size / size);
  return share;
}

}  // namespace mirabelle
