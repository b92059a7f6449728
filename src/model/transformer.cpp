#include "mirabelle/model/transformer.h"

#include <algorithm>
#include <cmath>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/profile_range.h"
#include "mirabelle/core/random.h"
#include "mirabelle/kernels/attention.h"
#include "mirabelle/kernels/cross_entropy.h"
#include "mirabelle/kernels/embedding.h"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/kernels/rms_norm.h"
#include "mirabelle/kernels/rotary_embedding.h"
#include "mirabelle/kernels/swiglu.h"

namespace mirabelle {
namespace {

/// Logits are made for a few rows at a time: about 8 MiB of float32, but enough rows to keep the
/// product with the head efficient.
int64_t logits_rows(int64_t num_tokens, int64_t vocab_size) {
  return std::min(num_tokens, std::max<int64_t>(256, (int64_t{2} << 20) / vocab_size));
}

/// Where dropout acts, as numbers for its key.
int64_t embedding_site() { return 0; }
int64_t attention_site(int64_t layer) { return 1 + 2 * layer; }
int64_t ffn_site(int64_t layer) { return 2 + 2 * layer; }

}  // namespace

Transformer::Transformer(const TransformerConfig& config, int64_t vocab_size,
                         int64_t padded_vocab_size, DType dtype, const Limits& limits,
                         Device device)
    : Transformer(Sketch{}, config, vocab_size, padded_vocab_size, dtype, limits, device) {
  weights_ = Buffer({layout_.num_elements()}, dtype, device);
  tensors_ = view_tensors(weights(), layout_, config, vocab_size);
  if (limits.training) {
    gradients_ = Buffer({layout_.num_elements()}, wide(dtype), device);
    grad_tensors_ = view_tensors(gradients(), layout_, config, vocab_size);
    loss_scale_ = Buffer({1}, DType::kFloat64, device);
    loss_sum_ = Buffer({1}, DType::kFloat64, device);
    dropout_keys_ = Buffer({ffn_site(config.num_layers - 1) + 1}, DType::kInt64, device);
  }
  rotary_table_ =
      Buffer({limits.max_sequence_tokens, config.head_dim() / 2, 2}, wide(dtype), device);
  const Stream stream(device);
  fill_rotary_table(rotary_table_.view(), config.rope_theta, stream);
  stream.synchronize();
  arena_ = Arena(arena_bytes_, device);
}

Transformer::Transformer(Sketch, const TransformerConfig& config, int64_t vocab_size,
                         int64_t padded_vocab_size, DType dtype, const Limits& limits,
                         Device device)
    : config_(config),
      vocab_size_(vocab_size),
      dtype_(dtype),
      limits_(limits),
      device_(device),
      layout_(config, padded_vocab_size),
      arena_(device) {
  config.check();
  MIRABELLE_CHECK(0 < vocab_size && vocab_size <= padded_vocab_size, "a vocabulary of ", vocab_size,
                  " tokens, padded to ", padded_vocab_size);
  plan(arena_, limits.max_tokens);  // only counts
  arena_bytes_ = arena_.bytes_used();
}

Transformer Transformer::sketch(const TransformerConfig& config, int64_t vocab_size,
                                int64_t padded_vocab_size, DType dtype, const Limits& limits,
                                Device device) {
  return Transformer(Sketch{}, config, vocab_size, padded_vocab_size, dtype, limits, device);
}

Transformer::Activations Transformer::plan(Arena& arena, int64_t num_tokens) const {
  const int64_t hidden = config_.hidden_size, ffn = config_.ffn_hidden_size;
  const int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads;
  const int64_t qkv_width = (heads + 2 * kv_heads) * config_.head_dim();
  auto take = [&](const Shape& shape) { return arena.allocate(shape, dtype_); };
  auto take_wide = [&](const Shape& shape) { return arena.allocate(shape, wide(dtype_)); };

  auto plan_layer = [&] {
    LayerActivations layer;
    layer.residual = take({num_tokens, hidden});
    layer.attention_norm_out = take({num_tokens, hidden});
    layer.attention_norm_rstd = take_wide({num_tokens});
    layer.qkv = take({num_tokens, heads + 2 * kv_heads, config_.head_dim()});
    layer.attention_out = take({num_tokens, hidden});
    layer.attention_log_sum = take_wide({num_tokens, heads});
    layer.residual_after_attention = take({num_tokens, hidden});
    layer.ffn_norm_out = take({num_tokens, hidden});
    layer.ffn_norm_rstd = take_wide({num_tokens});
    layer.gate_up = take({num_tokens, layout_.num_ffn_blocks(), 2, ffn / layout_.num_ffn_blocks()});
    layer.swiglu_out = take({num_tokens, ffn});
    return layer;
  };

  Activations a;
  a.layers.push_back(plan_layer());
  while (static_cast<int64_t>(a.layers.size()) < config_.num_layers) {
    a.layers.push_back(limits_.training ? plan_layer() : a.layers.front());
  }
  a.residual = take({num_tokens, hidden});
  a.final_norm_out = take({num_tokens, hidden});
  a.final_norm_rstd = take_wide({num_tokens});
  a.branch = take({num_tokens, hidden});
  a.widest = take({num_tokens, limits_.training ? std::max(qkv_width, 2 * ffn) : qkv_width});
  if (!limits_.training) return a;

  a.grad_residual = take({num_tokens, hidden});
  a.grad_branch = take({num_tokens, hidden});
  a.grad_hidden = take({num_tokens, hidden});
  a.grad_ffn = take({num_tokens, ffn});
  a.norm_workspace = take_wide({num_token_chunks(num_tokens), hidden});
  const int64_t rows = logits_rows(num_tokens, vocab_size_);
  a.logits = take({rows, vocab_size_});
  a.losses = take_wide({num_tokens});
  return a;
}

TensorView Transformer::Activations::widest_as(const Shape& shape) const {
  return widest.reshaped({widest.num_elements()}).rows(0, shape.num_elements()).reshaped(shape);
}

Shape Transformer::projected_shape(int64_t num_tokens) const {
  return {num_tokens, config_.num_kv_heads, config_.group_size() + 2, config_.head_dim()};
}

Dropout Transformer::dropout_at(const PackedBatch& batch, int64_t site) const {
  if (dropout_rate_ == 0) return {};
  return {dropout_rate_, dropout_keys_.view().rows(site, site + 1), batch.sequence_ids,
          batch.positions};
}

TensorView Transformer::forward(const PackedBatch& batch, const Stream& stream) {
  dropout_rate_ = 0;
  return forward_pass(batch, stream);
}

TensorView Transformer::forward_pass(const PackedBatch& batch, const Stream& stream) {
  const ProfileRange range("forward");
  const int64_t num_tokens = batch.tokens.num_elements();
  MIRABELLE_CHECK(num_tokens <= limits_.max_tokens, "a batch of ", num_tokens,
                  " tokens, planned were at most ", limits_.max_tokens);
  arena_.rewind(0);
  activations_ = plan(arena_, num_tokens);
  embedding_forward(activations_.layers[0].residual, batch.tokens, tensors_.embedding,
                    dropout_at(batch, embedding_site()), stream);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    forward_block(layer, batch, stream);
  }
  const Activations& a = activations_;
  residual_rms_norm_forward(a.final_norm_out, a.residual, a.final_norm_rstd,
                            a.layers.back().residual_after_attention, a.branch, tensors_.final_norm,
                            config_.norm_epsilon,
                            dropout_at(batch, ffn_site(config_.num_layers - 1)), stream);
  return a.final_norm_out;
}

/// Takes the residual stream of the block below and that block's last branch (for the first block:
/// the embedding, which stands in its own residual, and no branch); leaves its own last branch in
/// activations_.branch, to be added by the block above.
void Transformer::forward_block(int64_t layer, const PackedBatch& batch, const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  const TransformerTensors::Layer& w = tensors_.layers[layer];
  const TensorView& branch = activations_.branch;
  const int64_t num_tokens = batch.tokens.num_elements();
  const double scale = 1 / std::sqrt(static_cast<double>(config_.head_dim()));

  if (layer == 0) {
    residual_rms_norm_forward(a.attention_norm_out, {}, a.attention_norm_rstd, a.residual, {},
                              w.attention_norm, config_.norm_epsilon, {}, stream);
  } else {
    residual_rms_norm_forward(a.attention_norm_out, a.residual, a.attention_norm_rstd,
                              activations_.layers[layer - 1].residual_after_attention, branch,
                              w.attention_norm, config_.norm_epsilon,
                              dropout_at(batch, ffn_site(layer - 1)), stream);
  }
  const TensorView projected = activations_.widest_as(projected_shape(num_tokens));
  linear_forward(projected.reshaped({num_tokens, w.qkv.shape[0]}), a.attention_norm_out, w.qkv,
                 stream);
  split_and_rotate(a.qkv, projected, batch.positions, rotary_table(), stream);
  attention_forward(a.attention_out, a.attention_log_sum, a.qkv, batch.sequence_offsets,
                    limits_.max_sequence_tokens, scale, stream);
  linear_forward(branch, a.attention_out, w.attention_output, stream);

  residual_rms_norm_forward(a.ffn_norm_out, a.residual_after_attention, a.ffn_norm_rstd, a.residual,
                            branch, w.ffn_norm, config_.norm_epsilon,
                            dropout_at(batch, attention_site(layer)), stream);
  linear_forward(a.gate_up.reshaped({num_tokens, w.gate_up.shape[0]}), a.ffn_norm_out, w.gate_up,
                 stream);
  swiglu_forward(a.swiglu_out, a.gate_up, stream);
  linear_forward(branch, a.swiglu_out, w.down, stream);
}

void Transformer::logits(const TensorView& out, const TensorView& hidden,
                         const Stream& stream) const {
  linear_forward(out, hidden, tensors_.head, stream);
}

void Transformer::begin_step(double loss_scale, uint64_t seed, int64_t step, const Stream& stream) {
  MIRABELLE_CHECK(limits_.training, "this model was made without gradients");
  fill_zero(gradients(), stream);
  fill_zero(loss_sum(), stream);
  std::vector<int64_t> keys;
  for (int64_t site = 0; site < dropout_keys_.view().num_elements(); ++site) {
    keys.push_back(static_cast<int64_t>(random_key(seed, "dropout", {step, site})));
  }
  copy(loss_scale_.view(), view_of(&loss_scale, {1}), stream);
  copy(dropout_keys_.view(), view_of(keys), stream);
}

void Transformer::forward_backward(const PackedBatch& batch, const GradientsFinal& gradients_final,
                                   const Stream& stream) {
  MIRABELLE_CHECK(limits_.training, "this model was made without gradients");
  dropout_rate_ = config_.dropout;
  forward_pass(batch, stream);
  head_forward_backward(batch, stream);
  const ProfileRange range("backward");

  const Activations& a = activations_;
  const int64_t last = config_.num_layers - 1;
  auto final_range = [&](int64_t begin, int64_t end) {
    if (gradients_final && begin < end) gradients_final(gradients().rows(begin, end));
  };
  if (!config_.tie_embeddings) final_range(layout_.head(), layout_.norms());

  fill_zero(a.grad_residual, stream);
  residual_rms_norm_backward(a.grad_residual, a.grad_branch, grad_tensors_.final_norm,
                             a.grad_hidden, a.residual, a.final_norm_rstd, tensors_.final_norm,
                             dropout_at(batch, ffn_site(last)), a.norm_workspace, stream);
  for (int64_t layer = last; layer >= 0; --layer) {
    backward_block(layer, batch, stream);
    const auto& layers = layout_.layers();
    const int64_t end = layer < last             ? layers[layer + 1].qkv
                        : config_.tie_embeddings ? layout_.norms()
                                                 : layout_.head();
    final_range(layers[layer].qkv, end);
  }
  embedding_backward(grad_tensors_.embedding, a.grad_residual, batch.tokens,
                     dropout_at(batch, embedding_site()), stream);
  final_range(layout_.embedding(), layout_.layers()[0].qkv);
  final_range(layout_.norms(), layout_.num_elements());
}

void Transformer::head_forward_backward(const PackedBatch& batch, const Stream& stream) {
  const ProfileRange range("head");
  const Activations& a = activations_;
  const int64_t num_tokens = batch.tokens.num_elements(), rows = a.logits.shape[0];
  for (int64_t begin = 0; begin < num_tokens; begin += rows) {
    const int64_t end = std::min(begin + rows, num_tokens);
    const TensorView hidden = a.final_norm_out.rows(begin, end);
    const TensorView chunk = a.logits.rows(0, end - begin);
    logits(chunk, hidden, stream);
    softmax_cross_entropy(a.losses.rows(begin, end), chunk, batch.targets.rows(begin, end),
                          loss_scale_.view(), stream);
    linear_backward_weight(grad_tensors_.head, chunk, hidden, stream);
    linear_backward_input(a.grad_hidden.rows(begin, end), chunk, tensors_.head, Accumulate::kNo,
                          stream);
  }
  add_sum(loss_sum(), a.losses, stream);
}

/// On entry grad_branch is the gradient of the block's last branch and grad_residual that of the
/// residual stream which the branch is added to; on return both are those of the block below (of
/// the embedding, for the first block, in grad_residual).
void Transformer::backward_block(int64_t layer, const PackedBatch& batch, const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  const TransformerTensors::Layer& w = tensors_.layers[layer];
  const TransformerTensors::Layer& grad_w = grad_tensors_.layers[layer];
  const TensorView& grad_branch = activations_.grad_branch;
  const TensorView& grad_hidden = activations_.grad_hidden;
  const TensorView& workspace = activations_.norm_workspace;
  const int64_t num_tokens = batch.tokens.num_elements();
  const double scale = 1 / std::sqrt(static_cast<double>(config_.head_dim()));

  linear_backward_weight(grad_w.down, grad_branch, a.swiglu_out, stream);
  linear_backward_input(activations_.grad_ffn, grad_branch, w.down, Accumulate::kNo, stream);
  const TensorView grad_gate_up = activations_.widest_as({num_tokens, w.gate_up.shape[0]});
  swiglu_backward(grad_gate_up.reshaped(a.gate_up.shape), activations_.grad_ffn, a.gate_up, stream);
  linear_backward_weight(grad_w.gate_up, grad_gate_up, a.ffn_norm_out, stream);
  linear_backward_input(grad_hidden, grad_gate_up, w.gate_up, Accumulate::kNo, stream);
  residual_rms_norm_backward(activations_.grad_residual, grad_branch, grad_w.ffn_norm, grad_hidden,
                             a.residual_after_attention, a.ffn_norm_rstd, w.ffn_norm,
                             dropout_at(batch, attention_site(layer)), workspace, stream);

  linear_backward_weight(grad_w.attention_output, grad_branch, a.attention_out, stream);
  linear_backward_input(grad_hidden, grad_branch, w.attention_output, Accumulate::kNo, stream);
  const TensorView grad_qkv = activations_.widest_as(a.qkv.shape);
  attention_backward(grad_qkv, grad_hidden, a.attention_out, a.attention_log_sum, a.qkv,
                     batch.sequence_offsets, limits_.max_sequence_tokens, scale, stream);
  // Nobody reads the queries, keys and values again: the projection's gradient takes their place.
  const TensorView grad_projected = a.qkv.reshaped({num_tokens, w.qkv.shape[0]});
  split_and_rotate_backward(grad_projected.reshaped(projected_shape(num_tokens)), grad_qkv,
                            batch.positions, rotary_table(), stream);
  linear_backward_weight(grad_w.qkv, grad_projected, a.attention_norm_out, stream);
  linear_backward_input(grad_hidden, grad_projected, w.qkv, Accumulate::kNo, stream);
  const bool has_block_below = layer > 0;
  residual_rms_norm_backward(
      activations_.grad_residual, has_block_below ? grad_branch : TensorView{},
      grad_w.attention_norm, grad_hidden, a.residual, a.attention_norm_rstd, w.attention_norm,
      has_block_below ? dropout_at(batch, ffn_site(layer - 1)) : Dropout{}, workspace, stream);
}

double Transformer::training_flops(const std::vector<int64_t>& sequence_lengths) const {
  const double layer_weights =
      static_cast<double>(layout_.layers().size() > 1
                              ? layout_.layers()[1].qkv
                              : (config_.tie_embeddings ? layout_.norms() : layout_.head())) -
      static_cast<double>(layout_.layers()[0].qkv);
  const double weights =
      config_.num_layers * layer_weights + static_cast<double>(vocab_size_ * config_.hidden_size);
  double flops = 0;
  for (int64_t length : sequence_lengths) {
    const double n = static_cast<double>(length);
    flops += 6 * weights * n + 6.0 * config_.num_layers * config_.hidden_size * n * n;
  }
  return flops;
}

}  // namespace mirabelle
