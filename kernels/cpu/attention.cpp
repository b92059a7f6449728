#include "mirabelle/kernels/attention.h"

#include <cmath>

#include "cpu/attention_tiles.h"

namespace mirabelle::backend {
namespace {

/// Calls body.operator()<kDim>() with the tile width for this head_dim.
template <typename Body>
void dispatch_head_dim(int64_t head_dim, Body&& body) {
  if (head_dim <= 16) return body.template operator()<16>();
  if (head_dim <= 32) return body.template operator()<32>();
  if (head_dim <= 48) return body.template operator()<48>();
  if (head_dim <= 64) return body.template operator()<64>();
  if (head_dim <= 80) return body.template operator()<80>();
  if (head_dim <= 96) return body.template operator()<96>();
  if (head_dim <= 128) return body.template operator()<128>();
  return body.template operator()<kMaxHeadDim>();
}

/// Where things are in `qkv` and `out`.
struct Heads {
  int64_t num_kv_heads, group_size, head_dim;
  int64_t num_heads() const { return num_kv_heads * group_size; }
  int64_t token_stride() const { return (num_heads() + 2 * num_kv_heads) * head_dim; }
  int64_t query(int64_t kv_head, int64_t head) const {
    return (kv_head * group_size + head) * head_dim;
  }
  int64_t key(int64_t kv_head) const { return (num_heads() + kv_head) * head_dim; }
  int64_t value(int64_t kv_head) const { return key(num_kv_heads + kv_head); }
  int64_t out_stride() const { return num_heads() * head_dim; }
};

/// The tokens [first, last) of a block, in the sequence [begin, end). All are tokens of the batch.
struct SequenceBlock {
  int64_t begin, end, first, last;
  bool empty() const { return first >= last; }
  bool is_whole_sequence() const { return end - begin <= kBlock; }
};

/// The blocks of all sequences are numbered without a table: sequence s has the numbers from
/// offsets[s] / kBlock + s on, which are enough for it; those that it does not need are empty.
int64_t num_blocks(const int32_t* offsets, int64_t num_sequences) {
  return num_sequences == 0 ? 0 : offsets[num_sequences] / kBlock + num_sequences;
}

SequenceBlock find_block(const int32_t* offsets, int64_t num_sequences, int64_t number) {
  int64_t low = 0, high = num_sequences;  // the first number of `low` is at most `number`
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] / kBlock + middle <= number ? low : high) = middle;
  }
  const int64_t begin = offsets[low], end = offsets[low + 1];
  const int64_t first = begin + (number - begin / kBlock - low) * kBlock;
  return {begin, end, first, std::min(first + kBlock, end)};
}

/// Runs body(block, kv_head) for every block of every sequence and every key/value head. Threads
/// take the next one when they are free, so long and short sequences balance; each writes results
/// of its own.
template <typename Body>
void for_each_block(const int32_t* offsets, int64_t num_sequences, int64_t num_kv_heads,
                    const Body& body) {
  const int64_t num_tasks = num_blocks(offsets, num_sequences) * num_kv_heads;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < num_tasks; ++task) {
    const SequenceBlock block = find_block(offsets, num_sequences, task / num_kv_heads);
    if (!block.empty()) body(block, task % num_kv_heads);
  }
}

/// A block of keys and values of one head.
template <int64_t kDim, typename W>
struct KeyBlock {
  alignas(64) W key_panels[kBlock * kDim];
  alignas(64) W values[kBlock * kDim];
  int64_t num_keys = 0;
  const void* loaded = nullptr;

  /// `keys` and `values` point to the first token's; does nothing if this block is here already.
  template <typename T>
  void load(const T* keys, const T* first_value, int64_t token_stride, int64_t count,
            int64_t head_dim) {
    if (loaded == keys) return;
    transpose_rows<kDim>(key_panels, keys, token_stride, count, head_dim);
    copy_rows<kDim, W>(values, first_value, token_stride, count, head_dim, 1);
    num_keys = count;
    loaded = keys;
  }
};

/// The softmax of a block of queries over the keys that it met so far:
/// out = sum of exp(score - maximum) * value, sum = sum of exp(score - maximum).
template <int64_t kDim, typename W>
struct RunningSoftmax {
  alignas(64) W queries[kBlock * kDim];  // times scale
  alignas(64) W out[kBlock * kDim];
  W maximum[kBlock];
  W sum[kBlock];

  template <typename T>
  void start(const T* first_query, int64_t row_stride, int64_t num_rows, int64_t head_dim,
             double scale) {
    copy_rows<kDim>(queries, first_query, row_stride, num_rows, head_dim, static_cast<W>(scale));
    const int64_t padded = (num_rows + kRows - 1) / kRows * kRows;
    std::fill(out, out + padded * kDim, W{0});
    std::fill(maximum, maximum + num_rows, -std::numeric_limits<W>::infinity());
    std::fill(sum, sum + num_rows, W{0});
  }

  /// Rows [strip, strip + num_rows) meet a block of keys.
  void add(int64_t strip, int64_t num_rows, const KeyBlock<kDim, W>& keys, const Mask& mask) {
    alignas(64) W scores[kStrip * kBlock];
    multiply_panels<kDim>(scores, queries + strip * kDim, keys.key_panels, num_rows, mask);
    for (int64_t r = 0; r < num_rows; ++r) {
      W* p = scores + r * kBlock;
      const int64_t num_seen = mask.sees(r);
      const int64_t width = round_up_to_lanes<W>(mask.group_sees(r / kRows * kRows));
      W largest[kLanes<W>], total[kLanes<W>] = {};
      std::fill(largest, largest + kLanes<W>, maximum[strip + r]);
      for (int64_t key = 0; key < width; key += kLanes<W>) {
        const int num_left = static_cast<int>(num_seen - key);
#pragma omp simd
        for (int lane = 0; lane < kLanes<W>; ++lane) {
          const W score = lane < num_left ? p[key + lane] : -std::numeric_limits<W>::infinity();
          largest[lane] = score > largest[lane] ? score : largest[lane];
          p[key + lane] = score;
        }
      }
      const W new_maximum = largest_of<kLanes<W>>(largest);
      rescale(strip + r, new_maximum);
      for (int64_t key = 0; key < width; key += kLanes<W>) {
#pragma omp simd
        for (int lane = 0; lane < kLanes<W>; ++lane) {
          p[key + lane] = fast_exp(p[key + lane] - new_maximum);  // 0 where the key is not seen
          total[lane] += p[key + lane];
        }
      }
      sum[strip + r] += sum_of<kLanes<W>>(total);
    }
    add_weighted_values<kDim>(out + strip * kDim, scores, keys.values, num_rows, mask);
  }

  /// One row meets one more key.
  template <typename T>
  void add_key(int64_t row, const T* key, const T* value, int64_t head_dim) {
    const W* query = queries + row * kDim;
    const W score = dot(query, key, head_dim);
    rescale(row, std::max(maximum[row], score));
    const W p = fast_exp(score - maximum[row]);
    sum[row] += p;
    W* row_out = out + row * kDim;
#pragma omp simd
    for (int64_t c = 0; c < head_dim; ++c) row_out[c] += p * value[c];
  }

  void rescale(int64_t row, W new_maximum) {
    if (new_maximum == maximum[row]) return;
    const W shrink = fast_exp(maximum[row] - new_maximum);
    maximum[row] = new_maximum;
    if (sum[row] == 0) return;  // these are the row's first keys
    sum[row] *= shrink;
    W* row_out = out + row * kDim;
#pragma omp simd
    for (int64_t c = 0; c < kDim; ++c) row_out[c] *= shrink;
  }

  template <typename T>
  void write(T* to, int64_t row, int64_t head_dim) const {
    const W* row_out = out + row * kDim;
    const W inverse = 1 / sum[row];
#pragma omp simd
    for (int64_t c = 0; c < head_dim; ++c) to[c] = static_cast<T>(row_out[c] * inverse);
  }
};

template <int64_t kDim, typename T>
void attend_block(T* out, Wide<T>* log_sum, const T* qkv, const SequenceBlock& block,
                  int64_t kv_head, const Heads& heads, double scale) {
  KeyBlock<kDim, Wide<T>> keys;
  RunningSoftmax<kDim, Wide<T>> softmax;
  const int64_t stride = heads.token_stride(), num_rows = block.last - block.first;
  for (int64_t head = 0; head < heads.group_size; ++head) {
    softmax.start(qkv + block.first * stride + heads.query(kv_head, head), stride, num_rows,
                  heads.head_dim, scale);
    for (int64_t key = block.begin; key < block.last; key += kBlock) {
      keys.load(qkv + key * stride + heads.key(kv_head), qkv + key * stride + heads.value(kv_head),
                stride, std::min(kBlock, block.last - key), heads.head_dim);
      for (int64_t strip = 0; strip < num_rows; strip += kStrip) {
        softmax.add(strip, std::min(kStrip, num_rows - strip), keys,
                    {keys.num_keys, block.first + strip - key + 1});
      }
    }
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t out_head =
          (block.first + row) * heads.num_heads() + kv_head * heads.group_size + head;
      softmax.write(out + out_head * heads.head_dim, row, heads.head_dim);
      log_sum[out_head] = softmax.maximum[row] + std::log(softmax.sum[row]);
    }
  }
}

// The backward pass. With p = softmax(scale q k^T), which is computed again from log_sum:
//   dv = p^T dout,  dp = dout v^T,  ds = p (dp - delta),  delta = rowsum(dout out),
//   dq = scale ds k,  dk = scale ds^T q.

/// A strip of queries of one head and what the backward pass knows of it.
template <int64_t kDim, typename W>
struct QueryStrip {
  alignas(64) W queries[kStrip * kDim];  // times scale
  alignas(64) W grad_out[kStrip * kDim];
  W log_sum[kStrip];
  W delta[kStrip];
  int64_t num_rows;
};

/// The forward pass's operands and results, and the gradient that comes in.
template <typename T>
struct Results {
  const T *grad_out, *out;
  const Wide<T>* log_sum;
  const T* qkv;
};

template <int64_t kDim, typename T>
void load_strip(QueryStrip<kDim, Wide<T>>& strip, const Results<T>& from, int64_t token,
                int64_t end, int64_t kv_head, int64_t head, const Heads& heads, double scale) {
  const int64_t head_dim = heads.head_dim;
  const int64_t out_head = token * heads.num_heads() + kv_head * heads.group_size + head;
  strip.num_rows = std::min(kStrip, end - token);
  copy_rows<kDim>(strip.queries,
                  from.qkv + token * heads.token_stride() + heads.query(kv_head, head),
                  heads.token_stride(), strip.num_rows, head_dim, static_cast<Wide<T>>(scale));
  copy_rows<kDim, Wide<T>>(strip.grad_out, from.grad_out + out_head * head_dim, heads.out_stride(),
                           strip.num_rows, head_dim, 1);
  for (int64_t r = 0; r < strip.num_rows; ++r) {
    const int64_t row_head = out_head + r * heads.num_heads();
    const T* out = from.out + row_head * head_dim;
    strip.delta[r] = dot(strip.grad_out + r * kDim, out, head_dim);
    strip.log_sum[r] = from.log_sum[row_head];
  }
}

/// p and ds of a strip and a block of keys, [kStrip, kBlock].
template <int64_t kDim, typename W>
void score_gradients(W* p, W* ds, const QueryStrip<kDim, W>& strip, const W* key_panels,
                     const W* value_panels, const Mask& mask) {
  multiply_panels<kDim>(p, strip.queries, key_panels, strip.num_rows, mask);
  multiply_panels<kDim>(ds, strip.grad_out, value_panels, strip.num_rows, mask);
  for (int64_t r = 0; r < strip.num_rows; ++r) {
    W *p_row = p + r * kBlock, *ds_row = ds + r * kBlock;
    const W log_sum = strip.log_sum[r], delta = strip.delta[r];
    const int64_t num_seen = mask.sees(r);
    const int64_t width = round_up_to_lanes<W>(mask.group_sees(r / kRows * kRows));
    std::fill(p_row + num_seen, p_row + width, -std::numeric_limits<W>::infinity());
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      p_row[j] = fast_exp(p_row[j] - log_sum);  // 0 where the key is not seen
      ds_row[j] = p_row[j] * (ds_row[j] - delta);
    }
  }
}

template <typename T, typename W>
void write_rows(T* to, int64_t row_stride, const W* tile, int64_t tile_stride, int64_t num_rows,
                int64_t head_dim, W factor) {
  for (int64_t row = 0; row < num_rows; ++row) {
#pragma omp simd
    for (int64_t c = 0; c < head_dim; ++c) {
      to[row * row_stride + c] = static_cast<T>(factor * tile[row * tile_stride + c]);
    }
  }
}

/// The gradients of a block of keys and values; and of the queries, if they see no other block.
template <int64_t kDim, typename T>
void key_gradients(T* grad_qkv, const Results<T>& from, const SequenceBlock& block, int64_t kv_head,
                   const Heads& heads, double scale) {
  using W = Wide<T>;
  alignas(64) W key_panels[kBlock * kDim], value_panels[kBlock * kDim], keys[kBlock * kDim];
  alignas(64) W grad_keys[kBlock * kDim], grad_values[kBlock * kDim], grad_queries[kStrip * kDim];
  alignas(64) W p[kStrip * kBlock], ds[kStrip * kBlock];
  QueryStrip<kDim, W> strip;
  const int64_t stride = heads.token_stride(), head_dim = heads.head_dim;
  const int64_t num_keys = block.last - block.first;
  const int64_t block_key = block.first * stride + heads.key(kv_head);
  const int64_t block_value = block.first * stride + heads.value(kv_head);
  transpose_rows<kDim>(key_panels, from.qkv + block_key, stride, num_keys, head_dim);
  transpose_rows<kDim>(value_panels, from.qkv + block_value, stride, num_keys, head_dim);
  if (block.is_whole_sequence()) {
    copy_rows<kDim, W>(keys, from.qkv + block_key, stride, num_keys, head_dim, 1);
  }
  const int64_t padded_keys = (num_keys + kRows - 1) / kRows * kRows;
  std::fill(grad_keys, grad_keys + padded_keys * kDim, W{0});
  std::fill(grad_values, grad_values + padded_keys * kDim, W{0});
  for (int64_t head = 0; head < heads.group_size; ++head) {
    for (int64_t query = block.first; query < block.end; query += kStrip) {
      load_strip(strip, from, query, block.end, kv_head, head, heads, scale);
      const Mask mask{num_keys, query - block.first + 1};
      score_gradients<kDim>(p, ds, strip, key_panels, value_panels, mask);
      add_to_seen_keys<kDim>(grad_values, p, strip.grad_out, strip.num_rows, mask);
      add_to_seen_keys<kDim>(grad_keys, ds, strip.queries, strip.num_rows, mask);
      if (!block.is_whole_sequence()) continue;
      std::fill(grad_queries, grad_queries + kStrip * kDim, W{0});
      add_weighted_values<kDim>(grad_queries, ds, keys, strip.num_rows, mask);
      write_rows(grad_qkv + query * stride + heads.query(kv_head, head), stride, grad_queries, kDim,
                 strip.num_rows, head_dim, static_cast<W>(scale));
    }
  }
  write_rows(grad_qkv + block_key, stride, grad_keys, kDim, num_keys, head_dim, W{1});
  write_rows(grad_qkv + block_value, stride, grad_values, kDim, num_keys, head_dim, W{1});
}

/// The gradients of a block of queries of a sequence of several blocks.
template <int64_t kDim, typename T>
void query_gradients(T* grad_qkv, const Results<T>& from, const SequenceBlock& block,
                     int64_t kv_head, const Heads& heads, double scale) {
  using W = Wide<T>;
  alignas(64) W key_panels[kBlock * kDim], value_panels[kBlock * kDim], keys[kBlock * kDim];
  alignas(64) W grad_queries[kBlock * kDim], p[kStrip * kBlock], ds[kStrip * kBlock];
  QueryStrip<kDim, W> strips[kBlock / kStrip];
  const int64_t stride = heads.token_stride(), head_dim = heads.head_dim;
  const int64_t num_queries = block.last - block.first;
  for (int64_t head = 0; head < heads.group_size; ++head) {
    for (int64_t query = 0; query < num_queries; query += kStrip) {
      load_strip(strips[query / kStrip], from, block.first + query, block.last, kv_head, head,
                 heads, scale);
    }
    std::fill(grad_queries, grad_queries + kBlock * kDim, W{0});
    for (int64_t key = block.begin; key < block.last; key += kBlock) {
      const int64_t num_keys = std::min(kBlock, block.last - key);
      const T* first_key = from.qkv + key * stride + heads.key(kv_head);
      transpose_rows<kDim>(key_panels, first_key, stride, num_keys, head_dim);
      copy_rows<kDim, W>(keys, first_key, stride, num_keys, head_dim, 1);
      transpose_rows<kDim>(value_panels, from.qkv + key * stride + heads.value(kv_head), stride,
                           num_keys, head_dim);
      for (int64_t query = 0; query < num_queries; query += kStrip) {
        const QueryStrip<kDim, W>& strip = strips[query / kStrip];
        const Mask mask{num_keys, block.first + query - key + 1};
        score_gradients<kDim>(p, ds, strip, key_panels, value_panels, mask);
        add_weighted_values<kDim>(grad_queries + query * kDim, ds, keys, strip.num_rows, mask);
      }
    }
    write_rows(grad_qkv + block.first * stride + heads.query(kv_head, head), stride, grad_queries,
               kDim, num_queries, head_dim, static_cast<W>(scale));
  }
}

/// What the beams of one user see in one key/value head.
template <typename T>
struct BeamOperands {
  const T *qkv, *prefix_qkv, *suffix_kv;
  int64_t num_beams, suffix_length;
};

/// Beams [begin, end), at most kBlock of one user, whose history is the tokens [first, last).
template <int64_t kDim, typename T>
void attend_beams(T* out, const BeamOperands<T>& from, int64_t begin, int64_t end, int64_t first,
                  int64_t last, int64_t kv_head, const Heads& heads, double scale) {
  KeyBlock<kDim, Wide<T>> keys;
  RunningSoftmax<kDim, Wide<T>> softmax;
  const int64_t stride = heads.token_stride(), head_dim = heads.head_dim;
  for (int64_t head = 0; head < heads.group_size; ++head) {
    softmax.start(from.qkv + begin * stride + heads.query(kv_head, head), stride, end - begin,
                  head_dim, scale);
    for (int64_t key = first; key < last; key += kBlock) {
      const T* token = from.prefix_qkv + key * stride;
      keys.load(token + heads.key(kv_head), token + heads.value(kv_head), stride,
                std::min(kBlock, last - key), head_dim);
      for (int64_t row = 0; row < end - begin; row += kStrip) {
        softmax.add(row, std::min(kStrip, end - begin - row), keys, {keys.num_keys, keys.num_keys});
      }
    }
    for (int64_t beam = begin; beam < end; ++beam) {
      for (int64_t i = 0; i < from.suffix_length; ++i) {
        const int64_t row = (i * from.num_beams + beam) * 2 * heads.num_kv_heads;
        const T* key = from.suffix_kv + (row + kv_head) * head_dim;
        softmax.add_key(beam - begin, key, key + heads.num_kv_heads * head_dim, head_dim);
      }
      const T* token = from.qkv + beam * stride;
      softmax.add_key(beam - begin, token + heads.key(kv_head), token + heads.value(kv_head),
                      head_dim);
      const int64_t out_head = beam * heads.num_heads() + kv_head * heads.group_size + head;
      softmax.write(out + out_head * head_dim, beam - begin, head_dim);
    }
  }
}

}  // namespace

template <Device D, typename T>
void attention_forward(T* out, Wide<T>* log_sum, const T* qkv, const int32_t* sequence_offsets,
                       int64_t, int64_t num_sequences, int64_t, int64_t num_kv_heads,
                       int64_t group_size, int64_t head_dim, double scale, const Stream&) {
  const Heads heads{num_kv_heads, group_size, head_dim};
  dispatch_head_dim(head_dim, [&]<int64_t kDim>() {
    for_each_block(sequence_offsets, num_sequences, num_kv_heads,
                   [&](const SequenceBlock& block, int64_t kv_head) {
                     attend_block<kDim>(out, log_sum, qkv, block, kv_head, heads, scale);
                   });
  });
}

// A sequence of one block (most are) is done in one go. In longer ones, whose blocks are separate
// tasks, first the keys and values get their gradients and then the queries, at the price of
// computing p and ds twice: no sum then has more than one writer.
template <Device D, typename T>
void attention_backward(T* grad_qkv, const T* grad_out, const T* out, const Wide<T>* log_sum,
                        const T* qkv, const int32_t* sequence_offsets, int64_t,
                        int64_t num_sequences, int64_t, int64_t num_kv_heads, int64_t group_size,
                        int64_t head_dim, double scale, const Stream&) {
  const Heads heads{num_kv_heads, group_size, head_dim};
  const Results<T> from{grad_out, out, log_sum, qkv};
  dispatch_head_dim(head_dim, [&]<int64_t kDim>() {
    for_each_block(sequence_offsets, num_sequences, num_kv_heads,
                   [&](const SequenceBlock& block, int64_t kv_head) {
                     key_gradients<kDim>(grad_qkv, from, block, kv_head, heads, scale);
                   });
    for_each_block(sequence_offsets, num_sequences, num_kv_heads,
                   [&](const SequenceBlock& block, int64_t kv_head) {
                     if (block.is_whole_sequence()) return;
                     query_gradients<kDim>(grad_qkv, from, block, kv_head, heads, scale);
                   });
  });
}

template <Device D, typename T>
void beam_attention(T* out, const T* qkv, const T* prefix_qkv, const int32_t* prefix_offsets,
                    const int32_t* beam_offsets, const T* suffix_kv, int64_t num_users, int64_t,
                    int64_t num_beams, int64_t suffix_length, int64_t num_kv_heads,
                    int64_t group_size, int64_t head_dim, double scale, const Stream&) {
  const Heads heads{num_kv_heads, group_size, head_dim};
  const BeamOperands<T> from{qkv, prefix_qkv, suffix_kv, num_beams, suffix_length};
  dispatch_head_dim(head_dim, [&]<int64_t kDim>() {
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < num_users * num_kv_heads; ++task) {
      const int64_t user = task / num_kv_heads, last_beam = beam_offsets[user + 1];
      for (int64_t beam = beam_offsets[user]; beam < last_beam; beam += kBlock) {
        attend_beams<kDim>(out, from, beam, std::min(beam + kBlock, last_beam),
                           prefix_offsets[user], prefix_offsets[user + 1], task % num_kv_heads,
                           heads, scale);
      }
    }
  });
}

#define INSTANTIATE(T)                                                                             \
  template void attention_forward<Device::kCpu, T>(T*, Wide<T>*, const T*, const int32_t*,         \
                                                   int64_t, int64_t, int64_t, int64_t, int64_t,    \
                                                   int64_t, double, const Stream&);                \
  template void attention_backward<Device::kCpu, T>(                                               \
      T*, const T*, const T*, const Wide<T>*, const T*, const int32_t*, int64_t, int64_t, int64_t, \
      int64_t, int64_t, int64_t, double, const Stream&);                                           \
  template void beam_attention<Device::kCpu, T>(                                                   \
      T*, const T*, const T*, const int32_t*, const int32_t*, const T*, int64_t, int64_t, int64_t, \
      int64_t, int64_t, int64_t, int64_t, double, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
