#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/kernels/dropout.h"
#include "mirabelle/model/parameters.h"
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

/// The model of one rank: its weights, their gradients, and the activations of one packed batch.
/// Memory is allocated by the constructor only.
class Transformer {
 public:
  struct Limits {
    int64_t max_tokens = 0;           ///< of a batch
    int64_t max_sequence_tokens = 0;  ///< of one sequence
    bool training = true;             ///< false: no gradients, and activations are not kept
  };
  /// dtype: kFloat32, kBFloat16, or kFloat64 for checks (CPU).
  Transformer(const TransformerConfig& config, int64_t vocab_size, int64_t padded_vocab_size,
              DType dtype, const Limits& limits, Device device = Device::kCpu);

  /// The same model without memory: only to ask for sizes.
  static Transformer sketch(const TransformerConfig& config, int64_t vocab_size,
                            int64_t padded_vocab_size, DType dtype, const Limits& limits,
                            Device device);

  const TransformerConfig& config() const { return config_; }
  const ParameterLayout& layout() const { return layout_; }
  int64_t vocab_size() const { return vocab_size_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const TensorView& weights() const { return weights_.view(); }      ///< flat, by layout()
  const TensorView& gradients() const { return gradients_.view(); }  ///< the same, wide dtype
  const TransformerTensors& tensors() const { return tensors_; }
  const TensorView& rotary_table() const { return rotary_table_.view(); }
  int64_t weight_bytes() const { return layout_.num_elements() * size_in_bytes(dtype_); }
  int64_t gradient_bytes() const {
    return limits_.training ? layout_.num_elements() * size_in_bytes(wide(dtype_)) : 0;
  }
  int64_t activation_bytes() const { return arena_bytes_; }

  /// The hidden states after the last norm, [num_tokens, hidden_size], without dropout; valid until
  /// the next pass.
  TensorView forward(const PackedBatch& batch, const Stream& stream);

  /// out [n, vocab_size] = logits of n rows of hidden states.
  void logits(const TensorView& out, const TensorView& hidden, const Stream& stream) const;

  /// Begins an optimizer step: gradients and loss are zero, losses will count `loss_scale` times in
  /// the gradients, and dropout masks are those of (seed, step). What differs from step to step is
  /// in the device's memory from here on, so a recorded CUDA graph of forward_backward() serves all
  /// of them.
  void begin_step(double loss_scale, uint64_t seed, int64_t step, const Stream& stream);

  /// Called as parts of the flat gradient become final in a backward pass, latest layers first; the
  /// ranges cover everything once.
  using GradientsFinal = std::function<void(const TensorView& range)>;

  /// Forward and backward of one micro-batch. Adds loss_scale * d(sum of the targets' losses) to
  /// the gradients and the (unscaled) sum of the losses to loss_sum(). Only enqueues work.
  void forward_backward(const PackedBatch& batch, const GradientsFinal& gradients_final,
                        const Stream& stream);

  /// [1] float64 on the model's device: of all micro-batches since begin_step().
  const TensorView& loss_sum() const { return loss_sum_.view(); }

  /// Multiply-adds count two. What a training step needs at least: 6 per matrix weight and token
  /// (without the embedding look-up) plus causal attention counted as half, for sequences of these
  /// lengths.
  double training_flops(const std::vector<int64_t>& sequence_lengths) const;

 private:
  struct LayerActivations {
    TensorView residual, residual_after_attention;     // [T, hidden_size]
    TensorView attention_norm_out, ffn_norm_out;       // [T, hidden_size]
    TensorView attention_norm_rstd, ffn_norm_rstd;     // [T] wide
    TensorView qkv, attention_out, attention_log_sum;  // [T, ...]
    TensorView gate_up, swiglu_out;                    // [T, 2 ffn], [T, ffn]
  };
  struct Activations {
    std::vector<LayerActivations> layers;
    TensorView residual, final_norm_out, final_norm_rstd;  // after the last block
    TensorView branch;                                     // [T, hidden_size] a sublayer's output
    /// [T, qkv width], in training [T, max(qkv width, 2 ffn)]: shared by tensors that only the next
    /// few kernels need.
    TensorView widest;
    TensorView widest_as(const Shape& shape) const;
    // backward pass
    TensorView grad_residual, grad_branch, grad_hidden;  // [T, hidden_size]
    TensorView grad_ffn;                                 // [T, ffn]
    TensorView norm_workspace;                           // [chunks, hidden_size]
    TensorView logits;                                   // [chunk, vocab]
    TensorView losses;                                   // [T] wide
  };
  struct Sketch {};  // chooses the constructor that only plans
  Transformer(Sketch, const TransformerConfig& config, int64_t vocab_size,
              int64_t padded_vocab_size, DType dtype, const Limits& limits, Device device);
  Activations plan(Arena& arena, int64_t num_tokens) const;
  Shape projected_shape(int64_t num_tokens) const;  // of the fused QKV product
  Dropout dropout_at(const PackedBatch& batch, int64_t site) const;
  TensorView forward_pass(const PackedBatch& batch, const Stream& stream);
  void forward_block(int64_t layer, const PackedBatch& batch, const Stream& stream);
  void backward_block(int64_t layer, const PackedBatch& batch, const Stream& stream);
  void head_forward_backward(const PackedBatch& batch, const Stream& stream);

  TransformerConfig config_;
  int64_t vocab_size_;
  DType dtype_;
  Limits limits_;
  Device device_;
  ParameterLayout layout_;
  Buffer weights_, gradients_, rotary_table_;
  TransformerTensors tensors_, grad_tensors_;
  Buffer loss_scale_, loss_sum_;  // [1] float64
  Buffer dropout_keys_;           // [2 * num_layers + 1] int64, one for each site
  double dropout_rate_ = 0;       // of the pass under way
  int64_t arena_bytes_ = 0;
  Arena arena_;
  Activations activations_;
};

}  // namespace mirabelle
