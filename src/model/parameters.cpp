#include "mirabelle/model/parameters.h"

#include <cmath>
#include <string_view>

#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

/// Blocks of the fused gate/up matrix: the unit in which tensor-parallel ranks share it.
int64_t ffn_blocks(int64_t ffn_hidden_size) {
  int64_t blocks = 8;
  while (ffn_hidden_size % blocks != 0) blocks /= 2;
  return blocks;
}

std::string layer_name(size_t layer, const char* rest) {
  return "model.layers." + std::to_string(layer) + "." + rest;
}

}  // namespace

ParameterLayout::ParameterLayout(const TransformerConfig& config, int64_t padded_vocab_size)
    : config_(config),
      padded_vocab_size_(padded_vocab_size),
      num_ffn_blocks_(ffn_blocks(config.ffn_hidden_size)) {
  const int64_t hidden = config.hidden_size;
  int64_t end = padded_vocab_size * hidden;
  auto take = [&](int64_t rows, int64_t columns) {
    const int64_t offset = end;
    end += rows * columns;
    return offset;
  };
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Layer layer;
    layer.qkv = take((config.num_heads + 2 * config.num_kv_heads) * config.head_dim(), hidden);
    layer.attention_output = take(hidden, hidden);
    layer.gate_up = take(2 * config.ffn_hidden_size, hidden);
    layer.down = take(hidden, config.ffn_hidden_size);
    layers_.push_back(layer);
  }
  head_ = config.tie_embeddings ? embedding() : take(padded_vocab_size, hidden);
  norms_ = end;
  num_elements_ = norms_ + (2 * config.num_layers + 1) * hidden;
}

std::vector<LogicalPiece> ParameterLayout::pieces() const {
  const int64_t hidden = config_.hidden_size, head_dim = config_.head_dim();
  const int64_t query_rows = config_.group_size() * head_dim;
  const int64_t block_size = config_.ffn_hidden_size / num_ffn_blocks_;
  std::vector<LogicalPiece> pieces;

  pieces.push_back({"model.embed_tokens.weight",
                    {padded_vocab_size_, hidden},
                    0,
                    padded_vocab_size_,
                    embedding()});
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    // `count` row groups of a logical matrix, found every `stride` rows of a fused one
    auto fused = [&](const char* name, int64_t offset, int64_t count, int64_t rows,
                     int64_t stride) {
      for (int64_t k = 0; k < count; ++k) {
        pieces.push_back({layer_name(i, name),
                          {count * rows, hidden},
                          k * rows,
                          rows,
                          offset + k * stride * hidden});
      }
    };
    const int64_t kv_heads = config_.num_kv_heads, kv_stride = query_rows + 2 * head_dim;
    const int64_t key = layer.qkv + query_rows * hidden, value = key + head_dim * hidden;
    fused("self_attn.q_proj.weight", layer.qkv, kv_heads, query_rows, kv_stride);
    fused("self_attn.k_proj.weight", key, kv_heads, head_dim, kv_stride);
    fused("self_attn.v_proj.weight", value, kv_heads, head_dim, kv_stride);
    fused("self_attn.o_proj.weight", layer.attention_output, 1, hidden, hidden);
    const int64_t up = layer.gate_up + block_size * hidden;
    fused("mlp.gate_proj.weight", layer.gate_up, num_ffn_blocks_, block_size, 2 * block_size);
    fused("mlp.up_proj.weight", up, num_ffn_blocks_, block_size, 2 * block_size);
    pieces.push_back({layer_name(i, "mlp.down_proj.weight"),
                      {hidden, config_.ffn_hidden_size},
                      0,
                      hidden,
                      layer.down});
    const int64_t norm = norms_ + 2 * static_cast<int64_t>(i) * hidden;
    pieces.push_back({layer_name(i, "input_layernorm.weight"), {hidden}, 0, hidden, norm});
    pieces.push_back(
        {layer_name(i, "post_attention_layernorm.weight"), {hidden}, 0, hidden, norm + hidden});
  }
  pieces.push_back({"model.norm.weight", {hidden}, 0, hidden, num_elements_ - hidden});
  if (!config_.tie_embeddings) {
    pieces.push_back(
        {"lm_head.weight", {padded_vocab_size_, hidden}, 0, padded_vocab_size_, head_});
  }
  return pieces;
}

TransformerTensors view_tensors(const TensorView& flat, const ParameterLayout& layout,
                                const TransformerConfig& config, int64_t vocab_size) {
  const int64_t hidden = config.hidden_size;
  auto view = [&](int64_t offset, const Shape& shape) {
    return flat.rows(offset, offset + shape.num_elements()).reshaped(shape);
  };
  TransformerTensors tensors;
  tensors.embedding = view(layout.embedding(), {vocab_size, hidden});
  tensors.head = view(layout.head(), {vocab_size, hidden});
  tensors.final_norm = view(layout.num_elements() - hidden, {hidden});
  for (size_t i = 0; i < layout.layers().size(); ++i) {
    const ParameterLayout::Layer& layer = layout.layers()[i];
    const int64_t norm = layout.norms() + 2 * static_cast<int64_t>(i) * hidden;
    const int64_t qkv_rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim();
    tensors.layers.push_back({view(layer.qkv, {qkv_rows, hidden}),
                              view(layer.attention_output, {hidden, hidden}),
                              view(layer.gate_up, {2 * config.ffn_hidden_size, hidden}),
                              view(layer.down, {hidden, config.ffn_hidden_size}),
                              view(norm, {hidden}), view(norm + hidden, {hidden})});
  }
  return tensors;
}

void initialize_weights(const TensorView& flat, const ParameterLayout& layout,
                        const TransformerConfig& config, uint64_t seed) {
  const double deviation = config.initializer_range;
  const double to_residual = deviation / std::sqrt(2.0 * config.num_layers);
  for (const LogicalPiece& piece : layout.pieces()) {
    const bool is_norm = piece.shape.rank() == 1;
    const int64_t columns = is_norm ? 1 : piece.shape[1];
    const std::string_view name = piece.name;
    const double scale = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight")
                             ? to_residual
                             : deviation;
    const uint64_t key = random_key(seed, "weight " + piece.name);
    auto fill = [&](auto* values) {
#pragma omp parallel for schedule(static)
      for (int64_t i = 0; i < piece.num_rows * columns; ++i) {
        const int64_t element = piece.row_begin * columns + i;
        values[piece.offset + i] = is_norm ? 1 : scale * random_normal(key, element);
      }
    };
    flat.dtype == DType::kFloat32 ? fill(flat.as<float>()) : fill(flat.as<double>());
  }
}

}  // namespace mirabelle
