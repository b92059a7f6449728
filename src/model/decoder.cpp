#include "mirabelle/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "mirabelle/core/copy.h"
#include "mirabelle/kernels/attention.h"
#include "mirabelle/kernels/beam.h"
#include "mirabelle/kernels/cross_entropy.h"
#include "mirabelle/kernels/embedding.h"
#include "mirabelle/kernels/key_value_cache.h"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/kernels/rms_norm.h"
#include "mirabelle/kernels/rotary_embedding.h"
#include "mirabelle/kernels/swiglu.h"

namespace mirabelle {
namespace {

/// The first rows of `to`, after they were filled from the host. Host memory that is not pinned may
/// be reused at once.
TensorView upload(const TensorView& to, std::span<const int32_t> values, const Stream& stream) {
  const auto n = static_cast<int64_t>(values.size());
  copy(to.rows(0, n), view_of(values.data(), {n}), stream);
  return to.rows(0, n);
}

}  // namespace

Decoder::Decoder(const Transformer& model, const Limits& limits)
    : model_(model),
      parallel_(model.tensor_parallel().without_sequence_parallel()),
      limits_(limits),
      arena_(model.device()) {
  MIRABELLE_CHECK(limits.max_sequence_tokens <= model.rotary_table().shape[0], "histories of ",
                  limits.max_sequence_tokens, " tokens; the model was made for ",
                  model.rotary_table().shape[0]);
  arena_ = Arena(planned_bytes(model, limits), model.device());
  memory_ = plan(arena_, model, limits);
}

int64_t Decoder::planned_bytes(const Transformer& model, const Limits& limits) {
  Arena counting(model.device());
  plan(counting, model, limits);
  return counting.bytes_used();
}

Decoder::Scratch Decoder::plan_scratch(Arena& arena, const Transformer& model, int64_t num_tokens) {
  const TransformerConfig& c = model.config();
  const ShardSizes& sizes = model.layout().sizes();
  const int64_t shards = model.layout().share().num_local_shards();
  auto take = [&](const Shape& shape) { return arena.allocate(shape, model.dtype()); };
  auto take_wide = [&](const Shape& shape) { return arena.allocate(shape, wide(model.dtype())); };
  Scratch s;
  s.residual = take({num_tokens, c.hidden_size});
  s.norm_out = take({num_tokens, c.hidden_size});
  s.rstd = take_wide({num_tokens});
  s.branch = take({num_tokens, c.hidden_size});
  s.partials = model.tensor_parallel().without_sequence_parallel().plan_partials(
      arena, {shards, num_tokens, c.hidden_size});
  s.projected = take({num_tokens, sizes.num_kv_heads, sizes.group_size + 2, c.head_dim()});
  s.attention_out = take({shards, num_tokens, sizes.attention_width});
  s.attention_log_sum = take_wide({num_tokens, sizes.num_heads});
  s.gate_up = take({shards, num_tokens, 2 * sizes.ffn_hidden_size});
  s.swiglu_out = take({shards, num_tokens, sizes.ffn_hidden_size});
  s.positions = arena.allocate({num_tokens}, DType::kInt32);
  return s;
}

Decoder::Memory Decoder::plan(Arena& arena, const Transformer& model, const Limits& limits) {
  const TransformerConfig& c = model.config();
  const ShardSizes& sizes = model.layout().sizes();
  const int64_t shards = model.layout().share().num_local_shards();
  const int64_t rows = std::max(limits.max_users, limits.max_beams);
  const int64_t qkv_heads = sizes.num_heads + 2 * sizes.num_kv_heads;
  auto take = [&](const Shape& shape) { return arena.allocate(shape, model.dtype()); };
  Memory m;
  m.prefix = plan_scratch(arena, model, limits.max_prefix_tokens);
  m.beams = plan_scratch(arena, model, rows);
  m.beam_qkv = take({rows, qkv_heads, c.head_dim()});
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    m.prefix_qkv.push_back(take({shards, limits.max_prefix_tokens, qkv_heads, c.head_dim()}));
    for (auto& suffix : m.suffix_kv) {
      suffix.push_back(
          take({shards, limits.max_steps * limits.max_beams, 2, sizes.num_kv_heads, c.head_dim()}));
    }
  }
  m.prefix_tokens = arena.allocate({limits.max_prefix_tokens}, DType::kInt32);
  m.last_rows = arena.allocate({limits.max_users}, DType::kInt32);
  m.prefix_offsets = arena.allocate({limits.max_users + 1}, DType::kInt32);
  m.beam_offsets = arena.allocate({limits.max_users + 1}, DType::kInt32);
  m.logits = arena.allocate({rows, model.vocab_size()}, wide(model.dtype()));
  m.logit_shards = model.plan_logit_shards(arena, rows, wide(model.dtype()));
  return m;
}

Decoder::Scratch Decoder::Scratch::of_tokens(int64_t n) const {
  const auto of_shards = [&](const TensorView& x) {  // [shards, n, width]
    return x.first({x.shape[0], n, x.shape[2]});
  };
  return {residual.rows(0, n),
          norm_out.rows(0, n),
          rstd.rows(0, n),
          branch.rows(0, n),
          partials,
          projected.rows(0, n),
          of_shards(attention_out),
          attention_log_sum.rows(0, n),
          of_shards(gate_up),
          of_shards(swiglu_out),
          positions.rows(0, n)};
}

void Decoder::embed(const Scratch& s, const TensorView& tokens, const Stream& stream) {
  check_tokens(tokens, model_.vocab_size());
  embedding_forward(s.residual, tokens, model_.tensors().embedding, first_token(model_.layout()),
                    {}, stream);
  if (parallel_.size() > 1) parallel_.group().all_reduce(s.residual, ReduceOp::kSum, stream);
}

/// The norm in front of a layer's attention, after the branch of the layer below was added.
void Decoder::norm_before_attention(int64_t layer, const Scratch& s, const Stream& stream) {
  residual_rms_norm_forward(
      s.norm_out, s.residual, s.rstd, s.residual, layer > 0 ? s.branch : TensorView{},
      model_.tensors().layers[layer].attention_norm, model_.config().norm_epsilon, {}, stream);
}

/// The queries, keys and values of one shard, rotated.
void Decoder::project(int64_t layer, int64_t shard, const Scratch& s, const TensorView& qkv,
                      const Stream& stream) {
  const TensorView& weight = model_.tensors().layers[layer].qkv;
  linear_forward(s.projected.reshaped({qkv.shape[0], weight.shape[1]}), s.norm_out,
                 weight.slice(shard), stream);
  model_.finish_projection(s.projected, s.projected, layer, shard, stream);
  split_and_rotate(qkv, s.projected, s.positions, model_.rotary_table(), stream);
}

/// branch = sum over shards of x weight^T.
void Decoder::sum_products(const Scratch& s, const TensorView& x, const TensorView& weight,
                           const Stream& stream) {
  ShardSum sum(parallel_, s.branch, x.shape[1], s.partials);
  for (int64_t shard = 0; shard < x.shape[0]; ++shard) {
    linear_forward(sum.partial(shard), x.slice(shard), weight.slice(shard), stream);
  }
  sum.start(stream);
  sum.finish(stream);
}

/// The rest of a layer, from the attention's output to the feed-forward's branch.
void Decoder::finish_layer(int64_t layer, const Scratch& s, const Stream& stream) {
  const TransformerTensors::Layer& w = model_.tensors().layers[layer];
  sum_products(s, s.attention_out, w.attention_output, stream);
  residual_rms_norm_forward(s.norm_out, s.residual, s.rstd, s.residual, s.branch, w.ffn_norm,
                            model_.config().norm_epsilon, {}, stream);
  const int64_t rows = s.gate_up.shape[0] * s.gate_up.shape[1];
  for (int64_t shard = 0; shard < s.gate_up.shape[0]; ++shard) {
    linear_forward(s.gate_up.slice(shard), s.norm_out, w.gate_up.slice(shard), stream);
  }
  swiglu_forward(s.swiglu_out.reshaped({rows, s.swiglu_out.shape[2]}),
                 s.gate_up.reshaped(model_.layout().sizes().gate_up_shape(rows)), stream);
  sum_products(s, s.swiglu_out, w.down, stream);
}

TensorView Decoder::log_probabilities(const Scratch& s, const Stream& stream) {
  residual_rms_norm_forward(s.norm_out, s.residual, s.rstd, s.residual, s.branch,
                            model_.tensors().final_norm, model_.config().norm_epsilon, {}, stream);
  const TensorView out = memory_.logits.rows(0, s.residual.shape[0]);
  model_.logits(out, s.norm_out, memory_.logit_shards, stream);
  log_softmax(out, stream);
  return out;
}

TensorView Decoder::prefill(std::span<const int32_t> tokens,
                            std::span<const int32_t> prefix_offsets, const Stream& stream) {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const int64_t num_users = static_cast<int64_t>(prefix_offsets.size()) - 1;
  MIRABELLE_CHECK(num_tokens <= limits_.max_prefix_tokens && num_users <= limits_.max_users,
                  num_users, " histories of ", num_tokens, " tokens; planned were at most ",
                  limits_.max_users, " and ", limits_.max_prefix_tokens);
  const Scratch s = memory_.prefix.of_tokens(num_tokens);
  num_users_ = num_users;
  num_prefix_tokens_ = num_tokens;
  num_steps_ = 0;
  num_beams_ = 0;
  std::vector<int32_t> positions(num_tokens), last_rows(num_users);
  for (int64_t user = 0; user < num_users; ++user) {
    const int32_t begin = prefix_offsets[user], end = prefix_offsets[user + 1];
    MIRABELLE_CHECK(begin < end && end - begin <= limits_.max_sequence_tokens, "history ", user,
                    " has ", end - begin, " tokens, wanted 1 to ", limits_.max_sequence_tokens);
    std::iota(positions.begin() + begin, positions.begin() + end, 0);
    last_rows[user] = end - 1;
  }
  const TensorView device_tokens = upload(memory_.prefix_tokens, tokens, stream);
  upload(s.positions, positions, stream);
  const TensorView rows = upload(memory_.last_rows, last_rows, stream);
  const TensorView offsets = upload(memory_.prefix_offsets, prefix_offsets, stream);

  const int64_t last = model_.config().num_layers - 1;
  embed(s, device_tokens, stream);
  for (int64_t layer = 0; layer <= last; ++layer) {
    norm_before_attention(layer, s, stream);
    const TensorView qkv = prefix_qkv(layer);
    for (int64_t shard = 0; shard < qkv.shape[0]; ++shard) {
      project(layer, shard, s, qkv.slice(shard), stream);
      attention_forward(s.attention_out.slice(shard), s.attention_log_sum, qkv.slice(shard),
                        offsets, limits_.max_sequence_tokens, attention_scale(), stream);
    }
    if (layer < last) finish_layer(layer, s, stream);
  }
  // Of the last layer only the newest token of each history goes on.
  const Scratch newest = memory_.beams.of_tokens(num_users);
  gather_rows(newest.residual, s.residual, rows, stream);
  for (int64_t shard = 0; shard < s.attention_out.shape[0]; ++shard) {
    gather_rows(newest.attention_out.slice(shard), s.attention_out.slice(shard), rows, stream);
  }
  finish_layer(last, newest, stream);
  return log_probabilities(newest, stream);
}

/// [shards, tokens of the batch's histories, heads, head_dim]
TensorView Decoder::prefix_qkv(int64_t layer) const {
  const TensorView& all = memory_.prefix_qkv[layer];
  return all.first({all.shape[0], num_prefix_tokens_, all.shape[2], all.shape[3]});
}

double Decoder::attention_scale() const {
  return 1 / std::sqrt(static_cast<double>(model_.config().head_dim()));
}

TensorView Decoder::step(const TensorView& tokens, const TensorView& parents,
                         const Stream& stream) {
  MIRABELLE_CHECK(tokens.shape.rank() == 2 && tokens.shape[0] == num_users_ &&
                      (num_steps_ == 0 || parents.shape == tokens.shape),
                  "tokens has shape ", tokens.shape, ", parents ", parents.shape, ": wanted [",
                  num_users_, ", beams_per_user] both");
  const int64_t num_beams = tokens.num_elements();
  MIRABELLE_CHECK(num_beams <= limits_.max_beams, num_beams, " beams; planned were at most ",
                  limits_.max_beams);
  MIRABELLE_CHECK(num_steps_ < limits_.max_steps, "step ", num_steps_ + 1, " of at most ",
                  limits_.max_steps);
  const Scratch s = memory_.beams.of_tokens(num_beams);
  const TensorView parent_rows = num_steps_ > 0 ? parents.reshaped({num_beams}) : TensorView{};
  embed(s, tokens.reshaped({num_beams}), stream);
  place_beams(s.positions.reshaped(tokens.shape), beam_offsets(), prefix_offsets(), num_steps_,
              stream);
  for (int64_t layer = 0; layer < model_.config().num_layers; ++layer) {
    norm_before_attention(layer, s, stream);
    for (int64_t shard = 0; shard < s.attention_out.shape[0]; ++shard) {
      attend(layer, shard, s, parent_rows, stream);
    }
    finish_layer(layer, s, stream);
  }
  ++num_steps_;
  num_beams_ = num_beams;
  return log_probabilities(s, stream);
}

TensorView Decoder::prefix_offsets() const {
  return memory_.prefix_offsets.rows(0, num_users_ + 1);
}
TensorView Decoder::beam_offsets() const { return memory_.beam_offsets.rows(0, num_users_ + 1); }

/// One shard's attention of a step's beams; its cache of decoded tokens follows the beams.
void Decoder::attend(int64_t layer, int64_t shard, const Scratch& s, const TensorView& parent_rows,
                     const Stream& stream) {
  const int64_t num_beams = s.residual.shape[0];
  const bool is_last = num_steps_ + 1 == limits_.max_steps;
  const TensorView qkv = memory_.beam_qkv.rows(0, num_beams);
  const TensorView from = memory_.suffix_kv[num_steps_ % 2][layer].slice(shard);
  const TensorView to = memory_.suffix_kv[(num_steps_ + 1) % 2][layer].slice(shard);
  const auto entry = [&](const TensorView& suffix, int64_t step, int64_t beams_of_step) {
    return suffix.rows(step * beams_of_step, (step + 1) * beams_of_step);
  };
  project(layer, shard, s, qkv, stream);
  for (int64_t step = 0; step < num_steps_; ++step) {
    gather_rows(entry(to, step, num_beams), entry(from, step, num_beams_), parent_rows, stream);
  }
  const TensorView suffix = to.first({num_steps_, num_beams, 2, to.shape[2], to.shape[3]});
  beam_attention(s.attention_out.slice(shard), qkv, prefix_qkv(layer).slice(shard),
                 prefix_offsets(), beam_offsets(), suffix, num_steps_, attention_scale(), stream);
  if (!is_last) copy_keys_and_values(entry(to, num_steps_, num_beams), qkv, stream);
}

}  // namespace mirabelle
