#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/tokenizer/code_order.h"

namespace mirabelle {

/// One contiguous range of the vocabulary, e.g. {"level_0", 1, 256}.
struct TokenRange {
  std::string name;
  int64_t begin = 0;
  int64_t size = 0;
};

/// The item <-> semantic-ID table and the vocabulary that follows from it: text tokens (of an
/// imported language model, whose tokens keep their numbers), then special tokens, then one range
/// per level, then padding. Without levels there are only text tokens and padding. Every item has
/// exactly one semantic ID of `num_levels` codes. No two items share one, unless the table ranks
/// those that do by priorities. A disambiguation code, where there is one, is the last level.
class SemanticIds {
 public:
  static constexpr int64_t kVocabMultiple = 512;  ///< 64 x the largest tensor-parallel size, 8

  SemanticIds() = default;
  /// codes [num_items, level_sizes.size()] row-major. Throws a kData Error if a code is out of
  /// range or two items share an ID.
  SemanticIds(std::vector<int64_t> level_sizes, std::vector<int32_t> codes);
  /// The same for items that may share IDs: priorities [num_items] number the items of each ID, 0
  /// first. Throws a kData Error if they do not.
  SemanticIds(std::vector<int64_t> level_sizes, std::vector<int32_t> codes,
              std::vector<int32_t> priorities);

  /// The same IDs behind so many text tokens. Throws a kData Error if the tokens do not fit in 32
  /// bits.
  SemanticIds after_text(int64_t num_text_tokens) const;

  /// From a tokenizer file (format: tokenizer/tokenizer_file.h).
  static SemanticIds read(const std::filesystem::path& tokenizer_file);

  int64_t num_items() const { return num_items_; }
  int64_t num_levels() const { return static_cast<int64_t>(level_sizes_.size()); }
  int64_t level_size(int64_t level) const { return level_sizes_[level]; }
  std::span<const int32_t> codes(int64_t item) const {
    return std::span(codes_).subspan(item * num_levels(), num_levels());
  }
  CodeRows all_codes() const { return {codes_, num_levels()}; }
  /// The rank of an item among those of its ID.
  int32_t priority(int64_t item) const { return priorities_[item]; }
  /// All items in the order of their IDs; those that share one by priority.
  std::vector<int32_t> items_by_id() const;

  // Tokens
  int64_t num_text_tokens() const { return num_text_tokens_; }
  /// Starts every history.
  int32_t bos_token() const { return static_cast<int32_t>(num_text_tokens_); }
  int64_t level_begin(int64_t level) const { return level_begin_[level]; }
  int32_t token(int64_t item, int64_t level) const {
    return static_cast<int32_t>(level_begin_[level] + codes_[item * num_levels() + level]);
  }
  /// [num_levels + 1]: level l has the tokens [level_bounds()[l], level_bounds()[l + 1]).
  std::vector<int32_t> level_bounds() const;
  int64_t vocab_size() const { return vocab_size_; }                ///< tokens that exist
  int64_t padded_vocab_size() const { return padded_vocab_size_; }  ///< rows that are stored
  std::vector<TokenRange> token_ranges() const;  ///< text, special tokens, levels, padding

 private:
  void lay_out_tokens();

  int64_t num_items_ = 0, num_text_tokens_ = 0;
  std::vector<int64_t> level_sizes_, level_begin_;
  std::vector<int32_t> codes_, priorities_;
  int64_t vocab_size_ = 0, padded_vocab_size_ = 0;
};

/// All semantic IDs as a prefix tree. Nodes of depth d (after d codes) are numbered 0 .. n_d - 1 in
/// the order of their codes; depth 0 is the root, nodes of depth num_levels are the IDs.
class SemanticIdTrie {
 public:
  explicit SemanticIdTrie(const SemanticIds& ids);

  struct Children {
    std::span<const int32_t> tokens;  ///< ascending
    int64_t first_node;               ///< child i is node first_node + i of depth + 1
  };
  Children children(int64_t depth, int64_t node) const;
  int64_t num_nodes(int64_t depth) const;
  /// The items of a node of depth num_levels, by priority: one, or those that share its ID.
  std::span<const int32_t> items(int64_t node) const {
    return std::span(items_).subspan(item_begin_[node], item_begin_[node + 1] - item_begin_[node]);
  }

 private:
  struct Level {
    std::vector<int64_t> child_begin;   // [num_nodes(depth) + 1]
    std::vector<int32_t> child_tokens;  // [num_nodes(depth + 1)]
  };
  std::vector<Level> levels_;  // by depth of the parent
  std::vector<int32_t> items_;
  std::vector<int64_t> item_begin_;  // [num_nodes(num_levels) + 1]
};

}  // namespace mirabelle
