#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/kernels/dropout.h"
#include "mirabelle/model/parameters.h"
#include "mirabelle/model/shard_sum.h"
#include "mirabelle/model/transformer_config.h"

namespace mirabelle {

/// Whole sequences, one after the other, without padding. All tensors int32 on the model's device.
struct PackedBatch {
  TensorView tokens;            ///< [num_tokens]
  TensorView targets;           ///< [num_tokens] the next token, or -1 for none
  TensorView positions;         ///< [num_tokens] within the sequence, from 0
  TensorView sequence_ids;      ///< [num_tokens] number of the sequence within the optimizer step
  TensorView sequence_offsets;  ///< [num_sequences + 1]
};

/// Which activations a training pass keeps for its backward pass, and which it computes again: the
/// same numbers for less memory and more time.
enum class Recompute {
  kNone,       ///< keeps all
  kAttention,  ///< keeps what matrix products gave; norms, attention and SwiGLU run again
  kBlock,      ///< keeps each block's input; all of the block runs again
};

/// Where gradients live.
enum class GradientStorage {
  kAccumulated,  ///< one flat array, the sum over all passes of a step
  kPerPass,      ///< one flat array, of the newest pass
  kTransient,    ///< layers take turns with two pieces of memory, each valid until reused
};

/// What a training pass makes of the losses of targets. Level l of a semantic ID has the tokens
/// [level_bounds[l], level_bounds[l + 1]); where there are no levels, level_bounds is empty.
struct LossOptions {
  std::vector<int32_t> level_bounds;
  double label_smoothing = 0;  ///< see CrossEntropyOptions; needs levels
  bool weighs_levels = false;  ///< see Transformer::set_level_weights(); needs levels

  int64_t num_levels() const {
    return level_bounds.empty() ? 0 : static_cast<int64_t>(level_bounds.size()) - 1;
  }
};

/// What the owner of weights and gradients does while a pass runs. Regions are those of
/// ParameterLayout.
struct PassHooks {
  /// The weights of a region are going to be read.
  std::function<void(int64_t region)> weights_needed;
  /// The memory of a region's gradient is going to be overwritten (kTransient).
  std::function<void(int64_t region, const TensorView& memory)> gradient_reused;
  /// The gradient of a region is final on this rank; called once for each, latest layers first.
  std::function<void(int64_t region, const TensorView& gradient)> gradient_final;

  explicit operator bool() const { return weights_needed || gradient_reused || gradient_final; }
};

/// The model of one rank: its share of the weights, their gradients, and the activations of one
/// packed batch. Memory is allocated by the constructor only. Under tensor parallelism every pass
/// is a collective over the ranks that hold the shares of one model, on the same batch.
class Transformer {
 public:
  struct Limits {
    int64_t max_tokens = 0;           ///< of a batch
    int64_t max_sequence_tokens = 0;  ///< of one sequence
    bool training = true;             ///< false: no gradients, and activations are not kept
    Recompute recompute = Recompute::kNone;
    GradientStorage gradients = GradientStorage::kAccumulated;
    LossOptions loss = {};
  };
  /// dtype: kFloat32, kBFloat16, or kFloat64 for checks (CPU). `tensor_parallel`: the ranks that
  /// hold the other shares, null if share.tensor_parallel_size is 1; must outlive the model.
  /// Collective over it.
  Transformer(const TransformerConfig& config, int64_t vocab_size, int64_t padded_vocab_size,
              DType dtype, const Limits& limits, Device device = Device::kCpu,
              const ModelShare& share = {}, const Communicator* tensor_parallel = nullptr);

  /// The same model without memory: only to ask for sizes.
  static Transformer sketch(const TransformerConfig& config, int64_t vocab_size,
                            int64_t padded_vocab_size, DType dtype, const Limits& limits,
                            Device device, const ModelShare& share = {});

  const TransformerConfig& config() const { return config_; }
  const LossOptions& loss_options() const { return limits_.loss; }
  const ParameterLayout& layout() const { return layout_; }
  const TensorParallel& tensor_parallel() const { return parallel_; }
  int64_t vocab_size() const { return vocab_size_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const TensorView& weights() const { return weights_.view(); }  ///< flat, by layout()
  /// Flat, by layout(), wide dtype. Not with GradientStorage::kTransient.
  const TensorView& gradients() const { return gradients_.view(); }
  const TransformerTensors& tensors() const { return tensors_; }
  const TensorView& rotary_table() const { return rotary_table_.view(); }
  int64_t weight_bytes() const { return layout_.num_elements() * size_in_bytes(dtype_); }
  int64_t gradient_bytes() const;
  int64_t activation_bytes() const { return arena_bytes_; }

  /// The hidden states after the last norm, [num_tokens, hidden_size], without dropout; valid until
  /// the next pass.
  TensorView forward(const PackedBatch& batch, const Stream& stream);

  /// out [n, vocab_size] = logits of n rows of hidden states. `shards`: memory by
  /// plan_logit_shards() for at least n rows.
  void logits(const TensorView& out, const TensorView& hidden, const TensorView& shards,
              const Stream& stream) const;
  /// The fused projection of a shard [num_tokens, num_kv_heads, group_size + 2, head_dim] gets its
  /// bias, in place, and out = its heads after their norms, as far as the model has them. Without
  /// norms out must be `projected`, with them it may be.
  void finish_projection(const TensorView& out, const TensorView& projected, int64_t layer,
                         int64_t shard, const Stream& stream) const;

  /// Memory of `dtype` for logits(); absent if the vocabulary is not split.
  TensorView plan_logit_shards(Arena& arena, int64_t num_rows, DType dtype) const;

  /// Begins an optimizer step: gradients are zero, losses will count `loss_scale` times in the
  /// gradients, and dropout masks are those of (seed, step). What differs from step to step is in
  /// the device's memory from here on, so a recorded CUDA graph of forward_backward() serves all of
  /// them.
  void begin_step(double loss_scale, uint64_t seed, int64_t step, const Stream& stream);

  /// With loss_options().weighs_levels: from here on a target's loss counts so many times in the
  /// gradients as the weight [num_levels] of its level says; before the first call, once.
  void set_level_weights(const std::vector<double>& weights, const Stream& stream);

  /// Forward and backward of one micro-batch. Adds loss_scale * d(sum of the targets' losses, with
  /// weights and smoothing as loss_options() says) to the gradients and leaves the sum of the plain
  /// losses (CrossEntropyOptions) in loss_sums(). Only enqueues work.
  ///
  /// Gradients that several tensor-parallel ranks have summands of (of norms under sequence
  /// parallelism, of key/value heads that are held more than once) are summed by passes with
  /// hooks.gradient_final: with kAccumulated that is the last pass of a step, else every pass.
  void forward_backward(const PackedBatch& batch, const PassHooks& hooks, const Stream& stream);

  /// Whether a step must end with a pass that has gradient_final, even if nobody listens.
  bool shares_gradients() const;

  /// A training pass makes logits for so many of its tokens at a time.
  static int64_t logits_rows(int64_t num_tokens, int64_t vocab_size);

  /// [1 + num_levels] float64 on the model's device: of the last pass; over all targets, then over
  /// those of each level.
  const TensorView& loss_sums() const { return step_.loss_sums.view(); }
  TensorView loss_sum() const { return loss_sums().rows(0, 1); }  ///< over all targets

  /// Multiply-adds count two. What a training step needs at least: 6 per matrix weight and token
  /// (without the embedding look-up) plus causal attention counted as half, for sequences of these
  /// lengths; of the whole model.
  double training_flops(const std::vector<int64_t>& sequence_lengths) const;

 private:
  // S local shards, T tokens, of which this rank has T_l under sequence parallelism
  struct LayerActivations {
    TensorView residual, residual_after_attention;     // [T_l, hidden_size]
    TensorView attention_norm_out, ffn_norm_out;       // [T_l, hidden_size]
    TensorView attention_norm_rstd, ffn_norm_rstd;     // [T_l] wide
    TensorView qkv, attention_out, attention_log_sum;  // [S, T, ...]
    TensorView gate_up, swiglu_out;                    // [S, T, 2 ffn], [S, T, ffn]
    /// [S, T, qkv width] queries, keys and values before their norms; only with query_key_norm
    TensorView projected;
  };
  struct Activations {
    std::vector<LayerActivations> layers;
    TensorView residual, final_norm_out, final_norm_rstd;  // after the last block
    TensorView branch;                                     // [T_l, hidden_size] a sublayer's output
    /// Shared by tensors that only the next few kernels need: [S, T, qkv width], in training
    /// [S, T, max(qkv width, 2 ffn)].
    TensorView widest;
    TensorView full;      // [T, hidden_size] gathered tokens; only if sequence parallel
    TensorView partials;  // [S, T, hidden_size] of sums over shards
    // backward pass
    TensorView grad_residual, grad_branch, grad_hidden;  // [T_l, hidden_size]
    TensorView grad_inner;                               // [S, T, max(ffn, attention width)]
    TensorView full_grad;                                // as `full`
    TensorView norm_workspace;                           // [chunks, hidden_size]
    TensorView head_norm_workspace;                      // [chunks, 2, head_dim] or absent
    TensorView bias_workspace;                           // [chunks, qkv width] or absent
    TensorView logits;                                   // [S, rows, vocab]
    TensorView vocabulary_sums;                          // [1 + 2 S, rows] wide; only if split
    TensorView losses;                                   // [T] wide
    TensorView row_weights;                              // [T] wide; only with weighs_levels
  };
  /// What belongs to a step, in training.
  struct StepMemory {
    Buffer loss_scale;     // [1] float64
    Buffer loss_sums;      // [1 + num_levels] float64
    Buffer level_bounds;   // [num_levels + 1] int32
    Buffer level_weights;  // [num_levels] float64
    Buffer dropout_keys;   // [2 * num_layers + 1] int64, one for each site
    Buffer norm_blocks;    // [blocks, 2 * num_layers + 1, hidden_size]: see norm_blocks()
    /// [S, num_layers, 2, head_dim] summands of the shards; only if the heads are split
    Buffer head_norm_shards;
    Buffer key_value_copies;  // [local replicas, 2 * head_dim * hidden_size] gradients
    Buffer bias_copies;       // [local replicas, 2 * head_dim]
  };
  struct Sketch {};  // chooses the constructor that only plans
  Transformer(Sketch, const TransformerConfig& config, int64_t vocab_size,
              int64_t padded_vocab_size, DType dtype, const Limits& limits, Device device,
              const ModelShare& share, const Communicator* tensor_parallel);
  Activations plan(Arena& arena, int64_t num_tokens) const;
  void allocate_gradients();
  void allocate_loss();

  int64_t num_shards() const { return layout_.share().num_local_shards(); }
  int64_t num_norm_blocks() const;
  bool splits_head_norms() const;
  int64_t flat_gradient_elements() const;
  double attention_scale() const;
  Shape projected_shape(int64_t num_tokens) const;  // of the fused QKV product of one shard
  Dropout dropout_at(const PackedBatch& batch, int64_t site) const;
  Dropout local_dropout_at(const PackedBatch& batch, int64_t site) const;

  TensorView forward_pass(const PackedBatch& batch, const PassHooks& hooks, const Stream& stream);
  void embed(const PackedBatch& batch, const Stream& stream);
  void norm_before_attention(int64_t layer, const PackedBatch& batch, const Stream& stream);
  void norm_residual_again(int64_t layer, const Stream& stream);
  void attend(int64_t layer, const PackedBatch& batch, const Stream& stream);
  void attention_of_shards(int64_t layer, const PackedBatch& batch, const Stream& stream);
  TensorView projected(int64_t layer, int64_t shard, int64_t num_tokens) const;
  void norm_before_ffn(int64_t layer, const PackedBatch& batch, const Stream& stream);
  void apply_ffn(int64_t layer, const Stream& stream);
  void apply_swiglu(int64_t layer, const Stream& stream);
  void sum_products(const TensorView& x, const TensorView& weight, const Stream& stream);
  void recompute(int64_t layer, const PackedBatch& batch, const Stream& stream);

  void head_forward_backward(const PackedBatch& batch, const Stream& stream);
  TensorView shard_logits(int64_t shard, int64_t num_rows) const;
  void cross_entropy(const TensorView& losses, const TensorView& targets,
                     const TensorView& row_weights, const Stream& stream);
  void sum_losses(const TensorView& targets, const Stream& stream);
  void backward_block(int64_t layer, const PackedBatch& batch, const Stream& stream);
  void attention_backward_of_shards(int64_t layer, const PackedBatch& batch, const Stream& stream);
  void backward_products(const TensorView& grad_inner, const TensorView& grad_weight,
                         const TensorView& weight, const TensorView& inner, const Stream& stream);
  void backward_projection(const TensorView& grad_projected, const TensorView& grad_weight,
                           const TensorView& weight, const TensorView& norm_out,
                           const Stream& stream);
  void norm_backward(int64_t norm, const TensorView& grad_branch, const TensorView& residual,
                     const TensorView& rstd, const TensorView& weight, const Dropout& dropout,
                     const Stream& stream);
  void vectors_backward(int64_t layer, int64_t shard, const TensorView& grad_projected,
                        const Stream& stream);
  void sum_norm_gradients(const Stream& stream);
  void sum_head_norm_gradients(const Stream& stream);
  void sum_key_value_replicas(int64_t layer, const Stream& stream);
  void sum_bias_replicas(const Stream& stream);
  void sum_copies(const TensorView& copies,
                  const std::function<TensorView(int64_t shard)>& of_shard, const Stream& stream);

  TransformerConfig config_;
  int64_t vocab_size_;
  DType dtype_;
  Limits limits_;
  Device device_;
  ParameterLayout layout_;
  TensorParallel parallel_;
  std::unique_ptr<Communicator> kv_group_;  // ranks that hold the same key/value head
  Buffer weights_, gradients_, gradient_slots_, rotary_table_;
  std::vector<TensorView> region_gradients_;
  TransformerTensors tensors_, grad_tensors_;
  StepMemory step_;
  double dropout_rate_ = 0;  // of the pass under way
  int64_t arena_bytes_ = 0;
  Arena arena_;
  Activations activations_;
};

}  // namespace mirabelle
