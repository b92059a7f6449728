#include "mirabelle/model/parameters.h"

#include <algorithm>
#include <cmath>

#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

std::string layer_name(int64_t layer, const char* rest) {
  return "model.layers." + std::to_string(layer) + "." + rest;
}

/// Which rows [n, row_size] are not 0.
std::vector<bool> rows_with_values(std::span<const float> rows, int64_t row_size) {
  std::vector<bool> result;
  for (auto row = rows.begin(); row != rows.end(); row += row_size) {
    result.push_back(std::any_of(row, row + row_size, [](float x) { return x != 0; }));
  }
  return result;
}

}  // namespace

ParameterLayout::ParameterLayout(const TransformerConfig& config, int64_t padded_vocab_size,
                                 const ModelShare& share)
    : config_(config),
      padded_vocab_size_(padded_vocab_size),
      share_(share),
      sizes_(config, padded_vocab_size, share.num_shards) {
  share.check(config, padded_vocab_size);
  const int64_t hidden = config.hidden_size, shards = share.num_local_shards();
  int64_t end = 0;
  const auto take = [&](int64_t elements) { return std::exchange(end, end + elements); };
  const auto close_region = [&] {
    const int64_t begin = regions_.empty() ? 0 : regions_.back().end;
    end = (end + share.flat_multiple - 1) / share.flat_multiple * share.flat_multiple;
    regions_.push_back({begin, end});
  };
  take(shards * sizes_.vocab_size * hidden);
  close_region();
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Layer layer;
    layer.qkv = take(shards * sizes_.qkv_width * hidden);
    layer.attention_output = take(shards * hidden * sizes_.attention_width);
    layer.gate_up = take(shards * 2 * sizes_.ffn_hidden_size * hidden);
    layer.down = take(shards * hidden * sizes_.ffn_hidden_size);
    close_region();
    layers_.push_back(layer);
  }
  if (!config.tie_embeddings) {
    head_ = take(shards * sizes_.vocab_size * hidden);
    head_region_ = static_cast<int64_t>(regions_.size());
    close_region();
  }
  take((2 * config.num_layers + 1) * hidden);
  head_norms_ = take(config.query_key_norm ? config.num_layers * 2 * config.head_dim() : 0);
  qkv_biases_ = take(config.qkv_bias ? config.num_layers * shards * sizes_.qkv_width : 0);
  close_region();
}

std::vector<LogicalPiece> ParameterLayout::pieces() const {
  const int64_t hidden = config_.hidden_size, rows = share_.num_local_shards() * sizes_.vocab_size;
  const auto vocabulary = [&](const char* name, int64_t offset) {
    return LogicalPiece{name,  {padded_vocab_size_, hidden}, first_token(*this), rows, 0, hidden,
                        offset};
  };
  std::vector<LogicalPiece> pieces{vocabulary(kEmbedding, embedding())};
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    add_matrix_pieces(i, pieces);
    add_vector_pieces(i, pieces);
  }
  const int64_t last = norms() + 2 * config_.num_layers * hidden;
  pieces.push_back(
      {"model.norm.weight", {hidden}, 0, hidden, 0, 1, last, share_.tensor_parallel_rank == 0});
  if (!config_.tie_embeddings) pieces.push_back(vocabulary(kHead, head()));
  return pieces;
}

/// Of the queries, keys and values, whose heads are stored group by group: `width` elements for
/// each of their features.
void ParameterLayout::add_head_pieces(int64_t index, const char* name_end, int64_t offset,
                                      int64_t width, std::vector<LogicalPiece>& pieces) const {
  const int64_t head_dim = config_.head_dim(), query_rows = sizes_.group_size * head_dim;
  const int64_t group_rows = query_rows + 2 * head_dim;
  const int64_t first = share_.first_shard() * sizes_.num_kv_heads;
  const int64_t num_local = share_.num_local_shards() * sizes_.num_kv_heads;
  // `rows` rows of a logical tensor for every local key/value head, at row `at` of the head's group
  const auto add = [&](const std::string& name, int64_t total_heads, int64_t rows, int64_t at) {
    const Shape shape =
        width > 1 ? Shape{total_heads * head_dim, width} : Shape{total_heads * head_dim};
    for (int64_t i = 0; i < num_local; ++i) {
      const int64_t head = first + i;  // as if there were one for every shard
      const bool is_query = at == 0;
      pieces.push_back({layer_name(index, (name + name_end).c_str()), shape,
                        (is_query ? head : head / sizes_.kv_replicas) * rows, rows, 0, width,
                        offset + (i * group_rows + at) * width,
                        is_query || head % sizes_.kv_replicas == 0});
    }
  };
  add("self_attn.q_proj", config_.num_heads, query_rows, 0);
  add("self_attn.k_proj", config_.num_kv_heads, head_dim, query_rows);
  add("self_attn.v_proj", config_.num_kv_heads, head_dim, query_rows + head_dim);
}

void ParameterLayout::add_matrix_pieces(int64_t index, std::vector<LogicalPiece>& pieces) const {
  const Layer& layer = layers_[index];
  const int64_t hidden = config_.hidden_size;
  const int64_t shards = share_.num_local_shards(), first = share_.first_shard();
  // a matrix whose columns are split evenly
  const auto add_columns = [&](const char* name, const Shape& shape, int64_t offset) {
    const int64_t width = shape[1] / share_.num_shards;
    for (int64_t shard = 0; shard < shards; ++shard) {
      pieces.push_back({layer_name(index, name), shape, 0, shape[0], (first + shard) * width, width,
                        offset + shard * shape[0] * width});
    }
  };
  // the first or second half of each block of gate and up projection
  const auto add_blocks = [&](const char* name, int64_t half) {
    const int64_t rows = sizes_.ffn_block_size;
    for (int64_t i = 0; i < shards * sizes_.num_ffn_blocks; ++i) {
      pieces.push_back({layer_name(index, name),
                        {config_.ffn_hidden_size, hidden},
                        first * sizes_.ffn_hidden_size + i * rows,
                        rows,
                        0,
                        hidden,
                        layer.gate_up + (2 * i + half) * rows * hidden});
    }
  };
  add_head_pieces(index, ".weight", layer.qkv, hidden, pieces);
  add_columns("self_attn.o_proj.weight", {hidden, config_.num_heads * config_.head_dim()},
              layer.attention_output);
  add_blocks("mlp.gate_proj.weight", 0);
  add_blocks("mlp.up_proj.weight", 1);
  add_columns("mlp.down_proj.weight", {hidden, config_.ffn_hidden_size}, layer.down);
}

void ParameterLayout::add_vector_pieces(int64_t index, std::vector<LogicalPiece>& pieces) const {
  const bool is_primary = share_.tensor_parallel_rank == 0;
  // the same on all ranks
  const auto add = [&](const char* name, int64_t size, int64_t offset) {
    pieces.push_back({layer_name(index, name), {size}, 0, size, 0, 1, offset, is_primary});
  };
  const int64_t hidden = config_.hidden_size, head_dim = config_.head_dim();
  add("input_layernorm.weight", hidden, norms() + 2 * index * hidden);
  add("post_attention_layernorm.weight", hidden, norms() + (2 * index + 1) * hidden);
  if (config_.query_key_norm) {
    add("self_attn.q_norm.weight", head_dim, head_norms() + 2 * index * head_dim);
    add("self_attn.k_norm.weight", head_dim, head_norms() + (2 * index + 1) * head_dim);
  }
  if (config_.qkv_bias) {
    const int64_t size = share_.num_local_shards() * sizes_.qkv_width;
    add_head_pieces(index, ".bias", qkv_biases() + index * size, 1, pieces);
  }
}

std::vector<MatrixBatch> ParameterLayout::layer_matrices(int64_t index) const {
  const Layer& layer = layers_[index];
  const int64_t hidden = config_.hidden_size, head_dim = config_.head_dim();
  std::vector<MatrixBatch> matrices;
  for (int64_t shard = 0; shard < share_.num_local_shards(); ++shard) {
    const auto add = [&](int64_t offset, int64_t count, int64_t rows, int64_t columns) {
      matrices.push_back({offset + shard * count * rows * columns, count, rows, columns});
    };
    add(layer.qkv, sizes_.qkv_width / head_dim, head_dim, hidden);
    add(layer.attention_output, 1, hidden, sizes_.attention_width);
    add(layer.gate_up, 1, 2 * sizes_.ffn_hidden_size, hidden);
    add(layer.down, 1, hidden, sizes_.ffn_hidden_size);
  }
  return matrices;
}

std::vector<LogicalTensor> ParameterLayout::logical_tensors() const {
  std::vector<LogicalTensor> tensors;
  for (const LogicalPiece& piece : pieces()) {
    if (tensors.empty() || tensors.back().name != piece.name) {
      tensors.push_back({piece.name, piece.shape});
    }
  }
  return tensors;
}

std::vector<FlatRange> ParameterLayout::primary_ranges() const {
  std::vector<FlatRange> copies;
  for (const LogicalPiece& piece : pieces()) {
    if (!piece.is_primary) copies.push_back({piece.offset, piece.offset + piece.num_elements()});
  }
  std::sort(copies.begin(), copies.end(),
            [](const FlatRange& a, const FlatRange& b) { return a.begin < b.begin; });
  std::vector<FlatRange> ranges;
  int64_t begin = 0;
  for (const FlatRange& copy : copies) {
    if (begin < copy.begin) ranges.push_back({begin, copy.begin});
    begin = copy.end;
  }
  if (begin < num_elements()) ranges.push_back({begin, num_elements()});
  return ranges;
}

int64_t ParameterLayout::num_model_parameters() const {
  return ParameterLayout(config_, padded_vocab_size_).num_elements();
}

bool is_vocabulary_tensor(const std::string& name) { return name == kEmbedding || name == kHead; }

int64_t first_token(const ParameterLayout& layout, int64_t local_shard) {
  return (layout.share().first_shard() + local_shard) * layout.sizes().vocab_size;
}

std::vector<TensorView> view_regions(const TensorView& flat, const ParameterLayout& layout) {
  std::vector<TensorView> regions;
  for (const FlatRange& range : layout.regions()) {
    regions.push_back(flat.rows(range.begin, range.end));
  }
  return regions;
}

TransformerTensors view_tensors(const std::vector<TensorView>& regions,
                                const ParameterLayout& layout, const TransformerConfig& config,
                                int64_t vocab_size) {
  const int64_t hidden = config.hidden_size, shards = layout.share().num_local_shards();
  const ShardSizes& sizes = layout.sizes();
  // `offset` is that in the whole flat array
  const auto view = [&](int64_t index, int64_t offset, const Shape& shape) {
    const int64_t begin = offset - layout.regions()[index].begin;
    return regions[index].rows(begin, begin + shape.num_elements()).reshaped(shape);
  };
  // tokens of the vocabulary among `rows` rows from `first` on; the rest is padding
  const auto existing = [&](int64_t first, int64_t rows) {
    return std::clamp<int64_t>(vocab_size - first, 0, rows);
  };
  TransformerTensors tensors;
  tensors.embedding = view(0, layout.embedding(),
                           {existing(first_token(layout), shards * sizes.vocab_size), hidden});
  for (int64_t shard = 0; shard < shards; ++shard) {
    tensors.head.push_back(view(layout.head_region(),
                                layout.head() + shard * sizes.vocab_size * hidden,
                                {existing(first_token(layout, shard), sizes.vocab_size), hidden}));
  }
  tensors.norms = view(layout.norm_region(), layout.norms(), {2 * config.num_layers + 1, hidden});
  if (config.query_key_norm) {
    tensors.head_norms =
        view(layout.norm_region(), layout.head_norms(), {config.num_layers, 2, config.head_dim()});
  }
  TensorView biases;
  if (config.qkv_bias) {
    biases = view(layout.norm_region(), layout.qkv_biases(),
                  {config.num_layers, shards, sizes.qkv_width});
  }
  const auto of_layer = [](const TensorView& all, int64_t i) { return all ? all.slice(i) : all; };
  const auto norm = [&](int64_t i) { return tensors.norms.rows(i, i + 1).reshaped({hidden}); };
  tensors.final_norm = norm(2 * config.num_layers);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const ParameterLayout::Layer& layer = layout.layers()[i];
    const int64_t index = layout.layer_region(i);
    tensors.layers.push_back(
        {view(index, layer.qkv, {shards, sizes.qkv_width, hidden}),
         view(index, layer.attention_output, {shards, hidden, sizes.attention_width}),
         view(index, layer.gate_up, {shards, 2 * sizes.ffn_hidden_size, hidden}),
         view(index, layer.down, {shards, hidden, sizes.ffn_hidden_size}), norm(2 * i),
         norm(2 * i + 1), of_layer(tensors.head_norms, i), of_layer(biases, i)});
  }
  return tensors;
}

void initialize_weights(const TensorView& flat, const ParameterLayout& layout,
                        const TransformerConfig& config, int64_t vocab_size, uint64_t seed,
                        std::span<const float> token_rows) {
  const double deviation = config.initializer_range;
  const double to_residual = deviation / std::sqrt(2.0 * config.num_layers);
  const std::vector<bool> is_given = rows_with_values(token_rows, config.hidden_size);
  for (const LogicalPiece& piece : layout.pieces()) {
    const bool is_vector = piece.shape.rank() == 1;
    const int64_t all_columns = is_vector ? 1 : piece.shape[1];
    const std::string& name = piece.name;
    const double of_vectors = name.ends_with(".bias") ? 0 : 1;
    const bool is_vocabulary = is_vocabulary_tensor(name);
    const double scale = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight")
                             ? to_residual
                             : deviation;
    const uint64_t key = random_key(seed, "weight " + piece.name);
    const auto value = [&](int64_t row, int64_t column) {
      const int64_t element = row * all_columns + column;
      if (is_vector) return of_vectors;
      if (is_vocabulary && row >= vocab_size) return 0.0;
      const bool is_row_given = is_vocabulary && row < std::ssize(is_given) && is_given[row];
      return scale * (is_row_given ? token_rows[element] : random_normal(key, element));
    };
    auto fill = [&](auto* values) {
#pragma omp parallel for schedule(static)
      for (int64_t i = 0; i < piece.num_elements(); ++i) {
        values[piece.offset + i] = value(piece.row_begin + i / piece.num_columns,
                                         piece.column_begin + i % piece.num_columns);
      }
    };
    flat.dtype == DType::kFloat32 ? fill(flat.as<float>()) : fill(flat.as<double>());
  }
}

}  // namespace mirabelle
