#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/model/transformer.h"

namespace mirabelle {

/// Step-by-step decoding for beam search, with a key/value cache: the beams of a user share the
/// keys and values of the user's history. Uses the weights of a Transformer, which must outlive it;
/// has activations of its own. Memory is allocated by the constructor only. Under tensor
/// parallelism each rank keeps the keys and values of its own heads, every call is a collective,
/// and all ranks get the same log-probabilities.
///
///   prefill(histories)               -> log-probabilities of each user's first code
///   step(codes chosen, parents, ..)  -> log-probabilities of each beam's next code, and so on
class Decoder {
 public:
  struct Limits {
    int64_t max_prefix_tokens = 0;    ///< of all histories of a batch together
    int64_t max_sequence_tokens = 0;  ///< of one history with its decoded codes
    int64_t max_users = 0;
    int64_t max_beams = 0;  ///< of all users of a batch together
    int64_t max_steps = 0;  ///< calls of step() after a prefill(): num_levels - 1
  };
  Decoder(const Transformer& model, const Limits& limits);

  /// What that allocates; `model` may be a sketch.
  static int64_t planned_bytes(const Transformer& model, const Limits& limits);

  /// Starts a batch. tokens [num_prefix_tokens]: the users' histories one after the other, each at
  /// least one token; prefix_offsets [num_users + 1]. Returns log softmax over the whole
  /// vocabulary, [num_users, vocab_size] on the model's device, wide dtype, of the token that
  /// follows each history. The result belongs to the caller (who may overwrite it) until the next
  /// call.
  TensorView prefill(std::span<const int32_t> tokens, std::span<const int32_t> prefix_offsets,
                     const Stream& stream);

  /// Appends one token to each beam. tokens, parents [num_users, beams_per_user] int32 on the
  /// model's device; parents: the row of the previous step() that each beam continues, 0 ..
  /// num_users * its beams_per_user - 1 (not read by the first step). Returns log-probabilities
  /// [num_users * beams_per_user, vocab_size] as above. The host waits for nothing.
  TensorView step(const TensorView& tokens, const TensorView& parents, const Stream& stream);

 private:
  /// Activations of one layer for some tokens. What is split comes per local shard, [shards, n,
  /// ...]; `projected` and `attention_log_sum` serve one shard after the other.
  struct Scratch {
    TensorView residual, norm_out, rstd, branch, partials, projected, attention_out,
        attention_log_sum, gate_up, swiglu_out;
    TensorView positions;  // int32
    Scratch of_tokens(int64_t n) const;
  };
  struct Memory {
    Scratch prefix;                      // [max_prefix_tokens, ...]
    Scratch beams;                       // [max(max_users, max_beams), ...]
    TensorView beam_qkv;                 // of the newest tokens, of one shard
    std::vector<TensorView> prefix_qkv;  // per layer [shards, ...]
    std::array<std::vector<TensorView>, 2>
        suffix_kv;                            // per layer; a step gathers one into the other
    TensorView prefix_tokens;                 // [max_prefix_tokens] int32
    TensorView last_rows;                     // [max_users] int32: the newest token of each history
    TensorView prefix_offsets, beam_offsets;  // [max_users + 1] int32
    TensorView logits, logit_shards;
  };
  static Memory plan(Arena& arena, const Transformer& model, const Limits& limits);
  static Scratch plan_scratch(Arena& arena, const Transformer& model, int64_t num_tokens);
  TensorView prefix_qkv(int64_t layer) const;
  TensorView prefix_offsets() const;
  TensorView beam_offsets() const;
  double attention_scale() const;
  void embed(const Scratch& s, const TensorView& tokens, const Stream& stream);
  void norm_before_attention(int64_t layer, const Scratch& s, const Stream& stream);
  void project(int64_t layer, int64_t shard, const Scratch& s, const TensorView& qkv,
               const Stream& stream);
  void attend(int64_t layer, int64_t shard, const Scratch& s, const TensorView& parent_rows,
              const Stream& stream);
  void sum_products(const Scratch& s, const TensorView& x, const TensorView& weight,
                    const Stream& stream);
  void finish_layer(int64_t layer, const Scratch& s, const Stream& stream);
  TensorView log_probabilities(const Scratch& s, const Stream& stream);

  const Transformer& model_;
  TensorParallel parallel_;
  Limits limits_;
  Arena arena_;
  Memory memory_;
  int64_t num_users_ = 0, num_prefix_tokens_ = 0;  // of the batch
  int64_t num_steps_ = 0;                          // since the prefill
  int64_t num_beams_ = 0;                          // of the step before
};

}  // namespace mirabelle
