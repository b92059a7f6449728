#include "mirabelle/model/transformer.h"

#include <algorithm>
#include <cmath>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/profile_range.h"
#include "mirabelle/core/random.h"
#include "mirabelle/kernels/attention.h"
#include "mirabelle/kernels/bias.h"
#include "mirabelle/kernels/concatenate.h"
#include "mirabelle/kernels/cross_entropy.h"
#include "mirabelle/kernels/embedding.h"
#include "mirabelle/kernels/head_norm.h"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/kernels/rms_norm.h"
#include "mirabelle/kernels/rotary_embedding.h"
#include "mirabelle/kernels/swiglu.h"
#include "mirabelle/kernels/token_levels.h"
#include "mirabelle/model/rotary_scaling.h"

namespace mirabelle {
namespace {

/// Where dropout acts, as numbers for its key.
int64_t embedding_site() { return 0; }
int64_t attention_site(int64_t layer) { return 1 + 2 * layer; }
int64_t ffn_site(int64_t layer) { return 2 + 2 * layer; }

/// Norms are numbered in the order of the forward pass.
int64_t attention_norm(int64_t layer) { return 2 * layer; }
int64_t ffn_norm(int64_t layer) { return 2 * layer + 1; }

/// Layers take turns with so many pieces of memory for transient gradients: one is written while
/// the other is sent away.
constexpr int64_t kGradientSlots = 2;

ModelShare effective(ModelShare share, bool training) {
  share.sequence_parallel = share.sequence_parallel && training && share.tensor_parallel_size > 1;
  return share;
}

void check_loss(const LossOptions& loss, int64_t vocab_size) {
  const std::vector<int32_t>& bounds = loss.level_bounds;
  const bool is_valid = bounds.empty() || (loss.num_levels() > 0 && bounds.front() >= 0 &&
                                           bounds.back() <= vocab_size &&
                                           std::is_sorted(bounds.begin(), bounds.end()));
  MIRABELLE_CHECK(is_valid, "level_bounds must ascend from 0 or more to at most the ", vocab_size,
                  " tokens");
  MIRABELLE_CHECK(loss.num_levels() > 0 || (loss.label_smoothing == 0 && !loss.weighs_levels),
                  "label_smoothing and weighs_levels need level_bounds");
}

Dropout rows_of(Dropout dropout, int64_t begin, int64_t end) {
  if (dropout.rate == 0) return dropout;
  dropout.sequence_ids = dropout.sequence_ids.rows(begin, end);
  dropout.positions = dropout.positions.rows(begin, end);
  return dropout;
}

}  // namespace

Transformer::Transformer(const TransformerConfig& config, int64_t vocab_size,
                         int64_t padded_vocab_size, DType dtype, const Limits& limits,
                         Device device, const ModelShare& share,
                         const Communicator* tensor_parallel)
    : Transformer(Sketch{}, config, vocab_size, padded_vocab_size, dtype, limits, device, share,
                  tensor_parallel) {
  weights_ = Buffer({layout_.num_elements()}, dtype, device);
  tensors_ = view_tensors(view_regions(weights(), layout_), layout_, config, vocab_size);
  if (limits.training) {
    allocate_gradients();
    allocate_loss();
  }
  rotary_table_ =
      Buffer({limits.max_sequence_tokens, config.head_dim() / 2, 2}, wide(dtype), device);
  const Stream stream(device);
  const RotaryScaling rotary = rotary_scaling(config);
  fill_rotary_table(rotary_table_.view(), rotary.frequencies, rotary.amplitude, stream);
  arena_ = Arena(arena_bytes_, device);
}

Transformer::Transformer(Sketch, const TransformerConfig& config, int64_t vocab_size,
                         int64_t padded_vocab_size, DType dtype, const Limits& limits,
                         Device device, const ModelShare& share,
                         const Communicator* tensor_parallel)
    : config_(config),
      vocab_size_(vocab_size),
      dtype_(dtype),
      limits_(limits),
      device_(device),
      layout_(config, padded_vocab_size, effective(share, limits.training)),
      parallel_(layout_.share(), tensor_parallel, dtype),
      arena_(device) {
  config.check();
  MIRABELLE_CHECK(0 < vocab_size && vocab_size <= padded_vocab_size, "a vocabulary of ", vocab_size,
                  " tokens, padded to ", padded_vocab_size);
  check_loss(limits.loss, vocab_size);
  plan(arena_, limits.max_tokens);  // only counts
  arena_bytes_ = arena_.bytes_used();
}

Transformer Transformer::sketch(const TransformerConfig& config, int64_t vocab_size,
                                int64_t padded_vocab_size, DType dtype, const Limits& limits,
                                Device device, const ModelShare& share) {
  return Transformer(Sketch{}, config, vocab_size, padded_vocab_size, dtype, limits, device, share,
                     nullptr);
}

void Transformer::allocate_gradients() {
  const std::vector<FlatRange>& regions = layout_.regions();
  const bool transient = limits_.gradients == GradientStorage::kTransient;
  const DType grad_dtype = wide(dtype_);
  gradients_ = Buffer({flat_gradient_elements()}, grad_dtype, device_);
  if (transient) gradient_slots_ = Buffer({kGradientSlots, regions[1].size()}, grad_dtype, device_);
  int64_t begin = 0;
  for (int64_t region = 0; region < static_cast<int64_t>(regions.size()); ++region) {
    if (transient && layout_.is_layer_region(region)) {
      region_gradients_.push_back(gradient_slots_.view().slice(region % kGradientSlots));
    } else {
      region_gradients_.push_back(gradients_.view().rows(begin, begin + regions[region].size()));
      begin += regions[region].size();
    }
  }
  grad_tensors_ = view_tensors(region_gradients_, layout_, config_, vocab_size_);

  const int64_t num_norms = 2 * config_.num_layers + 1, hidden = config_.hidden_size;
  step_.dropout_keys = Buffer({ffn_site(config_.num_layers - 1) + 1}, DType::kInt64, device_);
  step_.norm_blocks = Buffer({num_norm_blocks(), num_norms, hidden}, grad_dtype, device_);
  if (splits_head_norms()) {
    step_.head_norm_shards =
        Buffer({num_shards(), config_.num_layers, 2, config_.head_dim()}, grad_dtype, device_);
  }

  const int64_t replicas = layout_.sizes().kv_replicas;
  if (replicas == 1) return;
  const int64_t local = std::min(replicas, num_shards()), ranks = replicas / local;
  step_.key_value_copies = Buffer({local, 2 * config_.head_dim() * hidden}, grad_dtype, device_);
  if (config_.qkv_bias) {
    step_.bias_copies = Buffer({local, 2 * config_.head_dim()}, grad_dtype, device_);
  }
  if (ranks > 1) {
    const auto rank = static_cast<int>(layout_.share().tensor_parallel_rank);
    kv_group_ = parallel_.group().split(rank / static_cast<int>(ranks), rank, "key/value heads");
  }
}

void Transformer::allocate_loss() {
  const int64_t num_levels = limits_.loss.num_levels();
  step_.loss_scale = Buffer({1}, DType::kFloat64, device_);
  step_.loss_sums = Buffer({1 + num_levels}, DType::kFloat64, device_);
  if (num_levels == 0) return;
  const Stream stream(device_);
  step_.level_bounds = Buffer({num_levels + 1}, DType::kInt32, device_);
  copy(step_.level_bounds.view(), view_of(limits_.loss.level_bounds), stream);
  if (limits_.loss.weighs_levels) {
    step_.level_weights = Buffer({num_levels}, DType::kFloat64, device_);
    set_level_weights(std::vector<double>(num_levels, 1.0), stream);
  }
  stream.synchronize();
}

/// Of what is kept for the whole pass.
int64_t Transformer::flat_gradient_elements() const {
  if (limits_.gradients != GradientStorage::kTransient) return layout_.num_elements();
  const std::vector<FlatRange>& regions = layout_.regions();
  return layout_.num_elements() - config_.num_layers * regions[1].size();
}

int64_t Transformer::gradient_bytes() const {
  if (!limits_.training) return 0;
  const bool transient = limits_.gradients == GradientStorage::kTransient;
  const int64_t slots = transient ? kGradientSlots * layout_.regions()[1].size() : 0;
  return (flat_gradient_elements() + slots) * size_in_bytes(wide(dtype_));
}

/// In how many parts of the tokens the norms' gradients are summed; 0: straight into the gradient.
int64_t Transformer::num_norm_blocks() const {
  const ModelShare& share = layout_.share();
  if (!share.is_split()) return 0;
  if (!share.reproducible) return share.sequence_parallel ? 1 : 0;
  return share.sequence_parallel ? share.num_local_shards() : share.num_shards;
}

/// Of a head's norm every shard of the heads has a summand, in a place of its own.
bool Transformer::splits_head_norms() const {
  return config_.query_key_norm && layout_.share().is_split();
}

Transformer::Activations Transformer::plan(Arena& arena, int64_t num_tokens) const {
  const ShardSizes& sizes = layout_.sizes();
  const int64_t hidden = config_.hidden_size, shards = num_shards();
  const int64_t local_tokens = parallel_.num_local_tokens(num_tokens);
  auto take = [&](const Shape& shape) { return arena.allocate(shape, dtype_); };
  auto take_wide = [&](const Shape& shape) { return arena.allocate(shape, wide(dtype_)); };

  const auto plan_products = [&](LayerActivations& layer) {
    layer.attention_norm_rstd = take_wide({local_tokens});
    layer.qkv =
        take({shards, num_tokens, sizes.num_heads + 2 * sizes.num_kv_heads, config_.head_dim()});
    if (config_.query_key_norm && limits_.training) {
      layer.projected = take({shards, num_tokens, sizes.qkv_width});
    }
    layer.residual_after_attention = take({local_tokens, hidden});
    layer.ffn_norm_rstd = take_wide({local_tokens});
    layer.gate_up = take({shards, num_tokens, 2 * sizes.ffn_hidden_size});
  };
  const auto plan_rest = [&](LayerActivations& layer) {
    layer.attention_norm_out = take({local_tokens, hidden});
    layer.attention_out = take({shards, num_tokens, sizes.attention_width});
    layer.attention_log_sum = take_wide({shards, num_tokens, sizes.num_heads});
    layer.ffn_norm_out = take({local_tokens, hidden});
    layer.swiglu_out = take({shards, num_tokens, sizes.ffn_hidden_size});
  };
  Activations a;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    LayerActivations layer = i > 0 ? a.layers.front() : LayerActivations{};
    const bool keeps = limits_.training || i == 0;
    if (keeps) layer.residual = take({local_tokens, hidden});
    if (i == 0 || (keeps && limits_.recompute != Recompute::kBlock)) plan_products(layer);
    if (i == 0 || (keeps && limits_.recompute == Recompute::kNone)) plan_rest(layer);
    a.layers.push_back(layer);
  }
  a.residual = take({local_tokens, hidden});
  a.final_norm_out = take({local_tokens, hidden});
  a.final_norm_rstd = take_wide({local_tokens});
  a.branch = take({local_tokens, hidden});
  const int64_t widest =
      std::max(sizes.qkv_width, limits_.training ? 2 * sizes.ffn_hidden_size : 0);
  a.widest = take({shards, num_tokens, widest});
  if (parallel_.sequence_parallel()) a.full = take({num_tokens, hidden});
  a.partials = parallel_.plan_partials(arena, {shards, num_tokens, hidden});
  if (!limits_.training) return a;

  a.grad_residual = take({local_tokens, hidden});
  a.grad_branch = take({local_tokens, hidden});
  a.grad_hidden = take({local_tokens, hidden});
  a.grad_inner = take({shards, num_tokens, std::max(sizes.ffn_hidden_size, sizes.attention_width)});
  if (parallel_.sequence_parallel()) a.full_grad = take({num_tokens, hidden});
  const int64_t norm_tokens = local_tokens / std::max<int64_t>(num_norm_blocks(), 1);
  a.norm_workspace = take_wide({num_token_chunks(norm_tokens), hidden});
  const int64_t chunks = num_token_chunks(num_tokens);
  if (config_.query_key_norm) a.head_norm_workspace = take_wide({chunks, 2, config_.head_dim()});
  if (config_.qkv_bias) a.bias_workspace = take_wide({chunks, sizes.qkv_width});
  const int64_t rows = logits_rows(num_tokens, vocab_size_);
  const bool is_split = layout_.share().is_split();
  a.logits = take({shards, rows, is_split ? sizes.vocab_size : vocab_size_});
  if (is_split) a.vocabulary_sums = take_wide({1 + 2 * shards, rows});
  a.losses = take_wide({num_tokens});
  if (limits_.loss.weighs_levels) a.row_weights = take_wide({num_tokens});
  return a;
}

/// About 8 MiB of float32, but enough rows to keep the product with the head efficient.
int64_t Transformer::logits_rows(int64_t num_tokens, int64_t vocab_size) {
  return std::min(num_tokens, std::max<int64_t>(256, (int64_t{2} << 20) / vocab_size));
}

Shape Transformer::projected_shape(int64_t num_tokens) const {
  const ShardSizes& sizes = layout_.sizes();
  return {num_tokens, sizes.num_kv_heads, sizes.group_size + 2, config_.head_dim()};
}

/// Of all tokens of the batch.
Dropout Transformer::dropout_at(const PackedBatch& batch, int64_t site) const {
  if (dropout_rate_ == 0) return {};
  return {dropout_rate_, step_.dropout_keys.view().rows(site, site + 1), batch.sequence_ids,
          batch.positions};
}

/// Of those that this rank has between the split tensors.
Dropout Transformer::local_dropout_at(const PackedBatch& batch, int64_t site) const {
  const int64_t num_tokens = parallel_.num_local_tokens(batch.tokens.num_elements());
  const int64_t begin =
      parallel_.sequence_parallel() ? layout_.share().tensor_parallel_rank * num_tokens : 0;
  return rows_of(dropout_at(batch, site), begin, begin + num_tokens);
}

TensorView Transformer::forward(const PackedBatch& batch, const Stream& stream) {
  dropout_rate_ = 0;
  return forward_pass(batch, {}, stream);
}

TensorView Transformer::forward_pass(const PackedBatch& batch, const PassHooks& hooks,
                                     const Stream& stream) {
  const ProfileRange range("forward");
  const int64_t num_tokens = batch.tokens.num_elements();
  MIRABELLE_CHECK(num_tokens <= limits_.max_tokens, "a batch of ", num_tokens,
                  " tokens, planned were at most ", limits_.max_tokens);
  const int64_t multiple = limits_.training ? layout_.share().token_multiple() : 1;
  MIRABELLE_CHECK(num_tokens % multiple == 0, "a batch of ", num_tokens,
                  " tokens, wanted a multiple of ", multiple);
  check_tokens(batch.tokens, vocab_size_);
  const auto need = [&](int64_t region) {
    if (hooks.weights_needed) hooks.weights_needed(region);
  };
  arena_.rewind(0);
  activations_ = plan(arena_, num_tokens);
  const Activations& a = activations_;
  need(0);
  embed(batch, stream);
  need(layout_.norm_region());
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    need(layout_.layer_region(layer));
    norm_before_attention(layer, batch, stream);
    attend(layer, batch, stream);
    sum_products(a.layers[layer].attention_out, tensors_.layers[layer].attention_output, stream);
    norm_before_ffn(layer, batch, stream);
    apply_ffn(layer, stream);
    sum_products(a.layers[layer].swiglu_out, tensors_.layers[layer].down, stream);
  }
  residual_rms_norm_forward(a.final_norm_out, a.residual, a.final_norm_rstd,
                            a.layers.back().residual_after_attention, a.branch, tensors_.final_norm,
                            config_.norm_epsilon,
                            local_dropout_at(batch, ffn_site(config_.num_layers - 1)), stream);
  need(layout_.head_region());
  return a.final_norm_out;
}

/// The embedding stands in the first block's own residual. Of a split table every rank looks up the
/// rows that it has; the others are 0, so any order of adding gives the same.
void Transformer::embed(const PackedBatch& batch, const Stream& stream) {
  const TensorView& residual = activations_.layers[0].residual;
  const bool scatters = parallel_.sequence_parallel();
  const TensorView& out = scatters ? activations_.full : residual;
  embedding_forward(out, batch.tokens, tensors_.embedding, first_token(layout_),
                    dropout_at(batch, embedding_site()), stream);
  if (scatters) {
    parallel_.group().reduce_scatter(residual, out, ReduceOp::kSum, stream);
  } else if (parallel_.size() > 1) {
    parallel_.group().all_reduce(residual, ReduceOp::kSum, stream);
  }
}

/// Takes the residual stream of the block below and that block's last branch, if there is one.
void Transformer::norm_before_attention(int64_t layer, const PackedBatch& batch,
                                        const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  const TensorView& weight = tensors_.layers[layer].attention_norm;
  if (layer == 0) return norm_residual_again(layer, stream);
  residual_rms_norm_forward(a.attention_norm_out, a.residual, a.attention_norm_rstd,
                            activations_.layers[layer - 1].residual_after_attention,
                            activations_.branch, weight, config_.norm_epsilon,
                            local_dropout_at(batch, ffn_site(layer - 1)), stream);
}

/// The same of a residual stream that stands there already.
void Transformer::norm_residual_again(int64_t layer, const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  residual_rms_norm_forward(a.attention_norm_out, {}, a.attention_norm_rstd, a.residual, {},
                            tensors_.layers[layer].attention_norm, config_.norm_epsilon, {},
                            stream);
}

void Transformer::attend(int64_t layer, const PackedBatch& batch, const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  const TensorView& weight = tensors_.layers[layer].qkv;
  const int64_t num_tokens = batch.tokens.num_elements();
  const TensorView x = parallel_.gather_tokens(activations_.full, a.attention_norm_out, stream);
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    const TensorView raw = projected(layer, shard, num_tokens);
    const TensorView finished = activations_.widest.first(raw.shape);
    linear_forward(raw.reshaped({num_tokens, weight.shape[1]}), x, weight.slice(shard), stream);
    finish_projection(finished, raw, layer, shard, stream);
    split_and_rotate(a.qkv.slice(shard), finished, batch.positions, rotary_table(), stream);
  }
  attention_of_shards(layer, batch, stream);
}

/// Where the product of a layer's fused projection goes: kept if the norms' backward pass needs it.
TensorView Transformer::projected(int64_t layer, int64_t shard, int64_t num_tokens) const {
  const TensorView& kept = activations_.layers[layer].projected;
  const TensorView memory = kept ? kept.slice(shard) : activations_.widest;
  return memory.first(projected_shape(num_tokens));
}

void Transformer::finish_projection(const TensorView& out, const TensorView& projected,
                                    int64_t layer, int64_t shard, const Stream& stream) const {
  const TransformerTensors::Layer& w = tensors_.layers[layer];
  if (w.qkv_bias) {
    const TensorView bias = w.qkv_bias.slice(shard);
    add_bias(projected.reshaped({projected.shape[0], bias.num_elements()}), bias, stream);
  }
  if (w.head_norms) {
    head_norm_forward(out, projected, w.head_norms, config_.norm_epsilon, stream);
  }
}

void Transformer::attention_of_shards(int64_t layer, const PackedBatch& batch,
                                      const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    attention_forward(a.attention_out.slice(shard), a.attention_log_sum.slice(shard),
                      a.qkv.slice(shard), batch.sequence_offsets, limits_.max_sequence_tokens,
                      attention_scale(), stream);
  }
}

double Transformer::attention_scale() const {
  return 1 / std::sqrt(static_cast<double>(config_.head_dim()));
}

void Transformer::norm_before_ffn(int64_t layer, const PackedBatch& batch, const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  residual_rms_norm_forward(a.ffn_norm_out, a.residual_after_attention, a.ffn_norm_rstd, a.residual,
                            activations_.branch, tensors_.layers[layer].ffn_norm,
                            config_.norm_epsilon, local_dropout_at(batch, attention_site(layer)),
                            stream);
}

void Transformer::apply_ffn(int64_t layer, const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  const TensorView& weight = tensors_.layers[layer].gate_up;
  const TensorView x = parallel_.gather_tokens(activations_.full, a.ffn_norm_out, stream);
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    linear_forward(a.gate_up.slice(shard), x, weight.slice(shard), stream);
  }
  apply_swiglu(layer, stream);
}

void Transformer::apply_swiglu(int64_t layer, const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  const int64_t rows = a.gate_up.shape[0] * a.gate_up.shape[1];
  swiglu_forward(a.swiglu_out.reshaped({rows, a.swiglu_out.shape[2]}),
                 a.gate_up.reshaped(layout_.sizes().gate_up_shape(rows)), stream);
}

/// branch = sum over shards of x weight^T.
void Transformer::sum_products(const TensorView& x, const TensorView& weight,
                               const Stream& stream) {
  ShardSum sum(parallel_, activations_.branch, x.shape[1], activations_.partials);
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    linear_forward(sum.partial(shard), x.slice(shard), weight.slice(shard), stream);
  }
  sum.start(stream);
  sum.finish(stream);
}

/// What the forward pass did not keep for a block's backward pass.
void Transformer::recompute(int64_t layer, const PackedBatch& batch, const Stream& stream) {
  if (limits_.recompute == Recompute::kNone) return;
  const ProfileRange range("recompute");
  const LayerActivations& a = activations_.layers[layer];
  norm_residual_again(layer, stream);
  if (limits_.recompute == Recompute::kBlock) {
    attend(layer, batch, stream);
    sum_products(a.attention_out, tensors_.layers[layer].attention_output, stream);
    norm_before_ffn(layer, batch, stream);
    apply_ffn(layer, stream);
  } else {
    attention_of_shards(layer, batch, stream);
    residual_rms_norm_forward(a.ffn_norm_out, {}, a.ffn_norm_rstd, a.residual_after_attention, {},
                              tensors_.layers[layer].ffn_norm, config_.norm_epsilon, {}, stream);
    apply_swiglu(layer, stream);
  }
}

TensorView Transformer::plan_logit_shards(Arena& arena, int64_t num_rows, DType dtype) const {
  if (!layout_.share().is_split()) return {};
  return arena.allocate({layout_.share().num_shards, num_rows, layout_.sizes().vocab_size}, dtype);
}

void Transformer::logits(const TensorView& out, const TensorView& hidden, const TensorView& shards,
                         const Stream& stream) const {
  const ModelShare& share = layout_.share();
  if (!share.is_split()) return linear_forward(out, hidden, tensors_.head[0], stream);
  const int64_t num_rows = hidden.shape[0], size = layout_.sizes().vocab_size;
  const TensorView all = shards.first({share.num_shards, num_rows, size});
  const TensorView mine =
      all.rows(share.first_shard(), share.first_shard() + share.num_local_shards());
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    // with the rows that pad the vocabulary, so that all shards are alike
    const int64_t begin = layout_.head() + shard * size * config_.hidden_size;
    const TensorView head = weights().rows(begin, begin + size * config_.hidden_size);
    linear_forward(mine.slice(shard), hidden, head.reshaped({size, config_.hidden_size}), stream);
  }
  if (parallel_.size() > 1) parallel_.group().all_gather(all, mine, stream);
  concatenate_columns(out, all, stream);
}

void Transformer::begin_step(double loss_scale, uint64_t seed, int64_t step, const Stream& stream) {
  MIRABELLE_CHECK(limits_.training, "this model was made without gradients");
  if (limits_.gradients == GradientStorage::kAccumulated) fill_zero(gradients(), stream);
  fill_zero(step_.norm_blocks.view(), stream);
  if (splits_head_norms()) fill_zero(step_.head_norm_shards.view(), stream);
  std::vector<int64_t> keys;
  for (int64_t site = 0; site < step_.dropout_keys.view().num_elements(); ++site) {
    keys.push_back(static_cast<int64_t>(random_key(seed, "dropout", {step, site})));
  }
  copy(step_.loss_scale.view(), view_of(&loss_scale, {1}), stream);
  copy(step_.dropout_keys.view(), view_of(keys), stream);
}

void Transformer::set_level_weights(const std::vector<double>& weights, const Stream& stream) {
  MIRABELLE_CHECK(limits_.loss.weighs_levels, "this model was made without weights of levels");
  copy(step_.level_weights.view(), view_of(weights), stream);
}

bool Transformer::shares_gradients() const {
  return num_norm_blocks() > 0 || splits_head_norms() || layout_.sizes().kv_replicas > 1;
}

void Transformer::forward_backward(const PackedBatch& batch, const PassHooks& hooks,
                                   const Stream& stream) {
  MIRABELLE_CHECK(limits_.training, "this model was made without gradients");
  const auto reuse = [&](int64_t region) {
    if (hooks.gradient_reused) hooks.gradient_reused(region, region_gradients_[region]);
    fill_zero(region_gradients_[region], stream);
  };
  const auto finish = [&](int64_t region) {
    if (hooks.gradient_final) hooks.gradient_final(region, region_gradients_[region]);
  };
  const bool transient = limits_.gradients == GradientStorage::kTransient;
  const bool starts_anew = limits_.gradients != GradientStorage::kAccumulated;
  for (int64_t region = 0; region <= layout_.norm_region() && starts_anew; ++region) {
    if (!transient || !layout_.is_layer_region(region)) reuse(region);
  }
  dropout_rate_ = config_.dropout;
  forward_pass(batch, hooks, stream);
  head_forward_backward(batch, stream);
  const ProfileRange range("backward");
  if (!config_.tie_embeddings) finish(layout_.head_region());

  const Activations& a = activations_;
  const int64_t last = config_.num_layers - 1;
  fill_zero(a.grad_residual, stream);
  norm_backward(ffn_norm(last) + 1, a.grad_branch, a.residual, a.final_norm_rstd,
                tensors_.final_norm, local_dropout_at(batch, ffn_site(last)), stream);
  for (int64_t layer = last; layer >= 0; --layer) {
    if (transient) reuse(layout_.layer_region(layer));
    recompute(layer, batch, stream);
    backward_block(layer, batch, stream);
    if (hooks.gradient_final) sum_key_value_replicas(layer, stream);
    finish(layout_.layer_region(layer));
  }
  embedding_backward(grad_tensors_.embedding,
                     parallel_.gather_tokens(a.full_grad, a.grad_residual, stream), batch.tokens,
                     first_token(layout_), dropout_at(batch, embedding_site()), stream);
  finish(0);
  if (hooks.gradient_final) {
    sum_norm_gradients(stream);
    sum_head_norm_gradients(stream);
    sum_bias_replicas(stream);
  }
  finish(layout_.norm_region());
}

/// [num_rows, tokens that exist], the beginning of a shard's part of a.logits.
TensorView Transformer::shard_logits(int64_t shard, int64_t num_rows) const {
  return activations_.logits.slice(shard).first({num_rows, tensors_.head[shard].shape[0]});
}

void Transformer::head_forward_backward(const PackedBatch& batch, const Stream& stream) {
  const ProfileRange range("head");
  const Activations& a = activations_;
  const int64_t num_tokens = batch.tokens.num_elements(), rows = a.logits.shape[1];
  const TensorView all_hidden = parallel_.gather_tokens(a.full, a.final_norm_out, stream);
  ShardSum grad_hidden(parallel_, a.grad_hidden, num_tokens, a.partials);
  if (a.row_weights) {
    gather_level_weights(a.row_weights, batch.targets, step_.level_bounds.view(),
                         step_.level_weights.view(), stream);
  }
  for (int64_t begin = 0; begin < num_tokens; begin += rows) {
    const int64_t end = std::min(begin + rows, num_tokens);
    const TensorView hidden = all_hidden.rows(begin, end);
    for (int64_t shard = 0; shard < num_shards(); ++shard) {
      linear_forward(shard_logits(shard, end - begin), hidden, tensors_.head[shard], stream);
    }
    cross_entropy(a.losses.rows(begin, end), batch.targets.rows(begin, end),
                  a.row_weights ? a.row_weights.rows(begin, end) : TensorView{}, stream);
    for (int64_t shard = 0; shard < num_shards(); ++shard) {
      const TensorView grad_logits = shard_logits(shard, end - begin);
      linear_backward_weight(grad_tensors_.head[shard], grad_logits, hidden, stream);
      linear_backward_input(grad_hidden.partial(shard).rows(begin, end), grad_logits,
                            tensors_.head[shard], Accumulate::kNo, stream);
    }
  }
  sum_losses(batch.targets, stream);
  grad_hidden.start(stream);
  grad_hidden.finish(stream);
}

void Transformer::sum_losses(const TensorView& targets, const Stream& stream) {
  fill_zero(loss_sums(), stream);
  add_sum(loss_sum(), activations_.losses, stream);
  if (limits_.loss.num_levels() == 0) return;
  add_level_sums(loss_sums().rows(1, loss_sums().shape[0]), activations_.losses, targets,
                 step_.level_bounds.view(), stream);
}

/// The losses of some rows, whose logits become their gradients. Over a split vocabulary: the
/// largest logits of all shards, then the sums of exponentials and the targets' logits.
void Transformer::cross_entropy(const TensorView& losses, const TensorView& targets,
                                const TensorView& row_weights, const Stream& stream) {
  const int64_t num_rows = targets.num_elements(), shards = num_shards();
  const TensorView& scale = step_.loss_scale.view();
  const CrossEntropyOptions options = {row_weights, limits_.loss.label_smoothing,
                                       step_.level_bounds.view()};
  if (!layout_.share().is_split()) {
    return softmax_cross_entropy(losses, shard_logits(0, num_rows), targets, scale, options,
                                 stream);
  }
  const TensorView& memory = activations_.vocabulary_sums;
  const TensorView largest = memory.slice(0).rows(0, num_rows);
  const TensorView sums = memory.rows(1, 1 + 2 * shards).first({shards, 2, num_rows});
  const bool has_peers = parallel_.size() > 1;
  for (int64_t shard = 0; shard < shards; ++shard) {
    shard_maximum(largest, shard_logits(shard, num_rows),
                  shard > 0 ? Accumulate::kYes : Accumulate::kNo, stream);
  }
  if (has_peers) parallel_.group().all_reduce(largest, ReduceOp::kMax, stream);
  for (int64_t shard = 0; shard < shards; ++shard) {
    shard_sums(sums.slice(shard), shard_logits(shard, num_rows), largest, targets,
               first_token(layout_, shard), stream);
  }
  const TensorView total = sums.slice(0);
  if (shards > 1) tree_sum(total, sums, stream);
  if (has_peers) parallel_.group().all_reduce(total, ReduceOp::kSum, stream);
  for (int64_t shard = 0; shard < shards; ++shard) {
    shard_gradient(losses, shard_logits(shard, num_rows), largest, total, targets,
                   first_token(layout_, shard), scale, options, stream);
  }
}

/// On entry grad_branch is the gradient of the block's last branch and grad_residual that of the
/// residual stream which the branch is added to; on return both are those of the block below (of
/// the embedding, for the first block, in grad_residual).
void Transformer::backward_block(int64_t layer, const PackedBatch& batch, const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  const TransformerTensors::Layer& w = tensors_.layers[layer];
  const TransformerTensors::Layer& grad_w = grad_tensors_.layers[layer];
  const TensorView& grad_branch = activations_.grad_branch;

  const TensorView grad_swiglu = activations_.grad_inner.first(a.swiglu_out.shape);
  backward_products(grad_swiglu, grad_w.down, w.down, a.swiglu_out, stream);
  const TensorView grad_gate_up = activations_.widest.first(a.gate_up.shape);
  const int64_t rows = a.gate_up.shape[0] * a.gate_up.shape[1];
  const Shape gate_up_shape = layout_.sizes().gate_up_shape(rows);
  swiglu_backward(grad_gate_up.reshaped(gate_up_shape),
                  grad_swiglu.reshaped({rows, grad_swiglu.shape[2]}),
                  a.gate_up.reshaped(gate_up_shape), stream);
  backward_projection(grad_gate_up, grad_w.gate_up, w.gate_up, a.ffn_norm_out, stream);
  norm_backward(ffn_norm(layer), grad_branch, a.residual_after_attention, a.ffn_norm_rstd,
                w.ffn_norm, local_dropout_at(batch, attention_site(layer)), stream);

  const TensorView grad_attention = activations_.grad_inner.first(a.attention_out.shape);
  backward_products(grad_attention, grad_w.attention_output, w.attention_output, a.attention_out,
                    stream);
  attention_backward_of_shards(layer, batch, stream);
  // Nobody reads the queries, keys and values again: the projection's gradient took their place.
  backward_projection(a.qkv.reshaped({num_shards(), a.qkv.shape[1], w.qkv.shape[1]}), grad_w.qkv,
                      w.qkv, a.attention_norm_out, stream);
  const bool has_block_below = layer > 0;
  norm_backward(attention_norm(layer), has_block_below ? grad_branch : TensorView{}, a.residual,
                a.attention_norm_rstd, w.attention_norm,
                has_block_below ? local_dropout_at(batch, ffn_site(layer - 1)) : Dropout{}, stream);
}

/// a.qkv = gradient of the QKV projection, from grad_inner, that of attention_out.
void Transformer::attention_backward_of_shards(int64_t layer, const PackedBatch& batch,
                                               const Stream& stream) {
  const LayerActivations& a = activations_.layers[layer];
  const TensorView grad_attention = activations_.grad_inner.first(a.attention_out.shape);
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    const TensorView qkv = a.qkv.slice(shard);
    const TensorView grad_qkv = activations_.widest.first(qkv.shape);
    attention_backward(grad_qkv, grad_attention.slice(shard), a.attention_out.slice(shard),
                       a.attention_log_sum.slice(shard), qkv, batch.sequence_offsets,
                       limits_.max_sequence_tokens, attention_scale(), stream);
    const TensorView grad_projected = qkv.reshaped(projected_shape(qkv.shape[0]));
    split_and_rotate_backward(grad_projected, grad_qkv, batch.positions, rotary_table(), stream);
    vectors_backward(layer, shard, grad_projected, stream);
  }
}

/// Gradients of the norms and the biases of queries, keys and values, where the model has them.
/// grad_projected becomes that of the product.
void Transformer::vectors_backward(int64_t layer, int64_t shard, const TensorView& grad_projected,
                                   const Stream& stream) {
  const TransformerTensors::Layer& w = tensors_.layers[layer];
  const TransformerTensors::Layer& grad_w = grad_tensors_.layers[layer];
  const int64_t num_tokens = grad_projected.shape[0];
  if (w.head_norms) {
    const TensorView grad = splits_head_norms()
                                ? step_.head_norm_shards.view().slice(shard).slice(layer)
                                : grad_w.head_norms;
    head_norm_backward(grad_projected, grad, grad_projected, projected(layer, shard, num_tokens),
                       w.head_norms, config_.norm_epsilon, activations_.head_norm_workspace,
                       stream);
  }
  if (w.qkv_bias) {
    bias_backward(grad_w.qkv_bias.slice(shard),
                  grad_projected.reshaped({num_tokens, w.qkv_bias.shape[1]}),
                  activations_.bias_workspace, stream);
  }
}

/// Of branch = sum over shards of inner weight^T:
///   grad_inner = grad_branch weight,  grad_weight += grad_branch^T inner
void Transformer::backward_products(const TensorView& grad_inner, const TensorView& grad_weight,
                                    const TensorView& weight, const TensorView& inner,
                                    const Stream& stream) {
  const TensorView grad =
      parallel_.gather_tokens(activations_.full_grad, activations_.grad_branch, stream);
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    linear_backward_weight(grad_weight.slice(shard), grad, inner.slice(shard), stream);
    linear_backward_input(grad_inner.slice(shard), grad, weight.slice(shard), Accumulate::kNo,
                          stream);
  }
}

/// Of projected = norm_out weight^T in every shard:
///   grad_hidden = sum over shards of grad_projected weight,  grad_weight += grad_projected^T
///   norm_out
/// The sum travels while the weights' gradients are computed.
void Transformer::backward_projection(const TensorView& grad_projected,
                                      const TensorView& grad_weight, const TensorView& weight,
                                      const TensorView& norm_out, const Stream& stream) {
  const Activations& a = activations_;
  const auto gathering = parallel_.start_gather_tokens(a.full, norm_out, stream);
  ShardSum grad_hidden(parallel_, a.grad_hidden, grad_projected.shape[1], a.partials);
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    linear_backward_input(grad_hidden.partial(shard), grad_projected.slice(shard),
                          weight.slice(shard), Accumulate::kNo, stream);
  }
  grad_hidden.start(stream);
  if (gathering) gathering->wait(stream);
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    linear_backward_weight(grad_weight.slice(shard), grad_projected.slice(shard),
                           gathering ? a.full : norm_out, stream);
  }
  grad_hidden.finish(stream);
}

/// Backward of norm number `norm`, from grad_hidden; see residual_rms_norm_backward. The weight's
/// gradient goes to the sums over blocks of tokens, if there are such.
void Transformer::norm_backward(int64_t norm, const TensorView& grad_branch,
                                const TensorView& residual, const TensorView& rstd,
                                const TensorView& weight, const Dropout& dropout,
                                const Stream& stream) {
  const Activations& a = activations_;
  const int64_t num_blocks = std::max<int64_t>(num_norm_blocks(), 1);
  const int64_t rows = residual.shape[0] / num_blocks;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t begin = block * rows, end = begin + rows;
    const TensorView& grad_norms =
        num_norm_blocks() > 0 ? step_.norm_blocks.view().slice(block) : grad_tensors_.norms;
    residual_rms_norm_backward(
        a.grad_residual.rows(begin, end), grad_branch ? grad_branch.rows(begin, end) : grad_branch,
        grad_norms.slice(norm), a.grad_hidden.rows(begin, end), residual.rows(begin, end),
        rstd.rows(begin, end), weight, rows_of(dropout, begin, end),
        a.norm_workspace.rows(0, num_token_chunks(rows)), stream);
  }
}

void Transformer::sum_norm_gradients(const Stream& stream) {
  if (num_norm_blocks() == 0) return;
  const TensorView& blocks = step_.norm_blocks.view();
  const TensorView total = blocks.slice(0);
  tree_sum(total, blocks, stream);
  if (parallel_.sequence_parallel()) parallel_.group().all_reduce(total, ReduceOp::kSum, stream);
  add(grad_tensors_.norms, total, stream);
  fill_zero(blocks, stream);
}

/// The shards' summands in one tree, over this rank's first.
void Transformer::sum_head_norm_gradients(const Stream& stream) {
  if (!splits_head_norms()) return;
  const TensorView& shards = step_.head_norm_shards.view();
  const TensorView total = shards.slice(0);
  tree_sum(total, shards, stream);
  if (parallel_.size() > 1) parallel_.group().all_reduce(total, ReduceOp::kSum, stream);
  add(grad_tensors_.head_norms, total, stream);
  fill_zero(shards, stream);
}

/// Every copy of a key/value head gets the sum of all copies' gradients.
void Transformer::sum_key_value_replicas(int64_t layer, const Stream& stream) {
  if (layout_.sizes().kv_replicas == 1) return;
  const TensorView& grad_qkv = grad_tensors_.layers[layer].qkv;
  const int64_t end = grad_qkv.shape[1], begin = end - 2 * config_.head_dim();
  sum_copies(
      step_.key_value_copies.view(),
      [&](int64_t shard) { return grad_qkv.slice(shard).rows(begin, end); }, stream);
}

/// The same of the biases, layer by layer.
void Transformer::sum_bias_replicas(const Stream& stream) {
  if (layout_.sizes().kv_replicas == 1 || !config_.qkv_bias) return;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const TensorView& grad_bias = grad_tensors_.layers[layer].qkv_bias;
    const int64_t end = grad_bias.shape[1], begin = end - 2 * config_.head_dim();
    sum_copies(
        step_.bias_copies.view(),
        [&](int64_t shard) { return grad_bias.slice(shard).rows(begin, end); }, stream);
  }
}

/// `of_shard`: what a local shard has of a gradient of which neighbouring shards hold copies.
/// `copies` [local replicas, elements]: memory.
void Transformer::sum_copies(const TensorView& copies,
                             const std::function<TensorView(int64_t shard)>& of_shard,
                             const Stream& stream) {
  const TensorView total = copies.slice(0);
  for (int64_t first = 0; first < num_shards(); first += copies.shape[0]) {
    for (int64_t i = 0; i < copies.shape[0]; ++i) {
      copy(copies.slice(i), of_shard(first + i).reshaped(total.shape), stream);
    }
    tree_sum(total, copies, stream);
    if (kv_group_) kv_group_->all_reduce(total, ReduceOp::kSum, stream);
    for (int64_t i = 0; i < copies.shape[0]; ++i) {
      copy(of_shard(first + i).reshaped(total.shape), total, stream);
    }
  }
}

double Transformer::training_flops(const std::vector<int64_t>& sequence_lengths) const {
  const double hidden = static_cast<double>(config_.hidden_size);
  const double heads = static_cast<double>(2 * config_.num_heads + 2 * config_.num_kv_heads);
  const double layer_weights = hidden * (heads * static_cast<double>(config_.head_dim()) +
                                         3 * static_cast<double>(config_.ffn_hidden_size));
  const double num_layers = static_cast<double>(config_.num_layers);
  const auto attention_width = static_cast<double>(config_.num_heads * config_.head_dim());
  const double weights = num_layers * layer_weights + static_cast<double>(vocab_size_) * hidden;
  double flops = 0;
  for (int64_t length : sequence_lengths) {
    const double n = static_cast<double>(length);
    flops += 6 * weights * n + 6 * num_layers * attention_width * n * n;
  }
  return flops;
}

}  // namespace mirabelle
