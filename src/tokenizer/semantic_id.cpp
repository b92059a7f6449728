#include "mirabelle/tokenizer/semantic_id.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <sstream>

#include "mirabelle/core/error.h"
#include "mirabelle/tokenizer/tokenizer_file.h"

namespace mirabelle {
namespace {

constexpr int64_t kNumSpecialTokens = 1;  // bos

std::string to_text(std::span<const int32_t> codes) {
  std::ostringstream text;
  text << '[';
  for (size_t level = 0; level < codes.size(); ++level) text << (level ? ", " : "") << codes[level];
  text << ']';
  return text.str();
}

}  // namespace

SemanticIds::SemanticIds(std::vector<int64_t> level_sizes, std::vector<int32_t> codes)
    : SemanticIds(std::move(level_sizes), std::move(codes), {}) {}

SemanticIds::SemanticIds(std::vector<int64_t> level_sizes, std::vector<int32_t> codes,
                         std::vector<int32_t> priorities)
    : level_sizes_(std::move(level_sizes)),
      codes_(std::move(codes)),
      priorities_(std::move(priorities)) {
  MIRABELLE_CHECK_DATA(!level_sizes_.empty(), "semantic IDs need at least one level");
  MIRABELLE_CHECK_DATA(codes_.size() % level_sizes_.size() == 0, codes_.size(),
                       " codes do not make whole semantic IDs of ", num_levels(), " levels");
  num_items_ = static_cast<int64_t>(codes_.size()) / num_levels();

  lay_out_tokens();
  for (int64_t i = 0; i < static_cast<int64_t>(codes_.size()); ++i) {
    const int64_t level = i % num_levels();
    MIRABELLE_CHECK_DATA(0 <= codes_[i] && codes_[i] < level_sizes_[level], "item ",
                         i / num_levels(), " has code ", codes_[i], " at level ", level,
                         ", wanted 0 to ", level_sizes_[level] - 1);
  }
  const bool may_share = !priorities_.empty();
  priorities_.resize(may_share ? priorities_.size() : num_items_);
  MIRABELLE_CHECK_DATA(static_cast<int64_t>(priorities_.size()) == num_items_, priorities_.size(),
                       " priorities for ", num_items_, " items");
  std::vector<int32_t> by_priority;
  for_each_group(all_codes(), num_levels(), [&](std::span<const int32_t> items) {
    MIRABELLE_CHECK_DATA(may_share || items.size() == 1, "items ", items[0], " and ", items[1],
                         " share the semantic ID ", to_text(this->codes(items[0])),
                         ", wanted a different one each");
    by_priority.assign(items.size(), -1);
    for (const int32_t item : items) {
      const int32_t priority = priorities_[item];
      MIRABELLE_CHECK_DATA(0 <= priority && priority < static_cast<int32_t>(items.size()) &&
                               by_priority[priority] < 0,
                           "item ", item, " has priority ", priority, " among the ", items.size(),
                           " items of the semantic ID ", to_text(this->codes(item)),
                           ", wanted each of 0 to ", items.size() - 1, " once");
      by_priority[priority] = item;
    }
  });
}

void SemanticIds::lay_out_tokens() {
  vocab_size_ = num_text_tokens_ + (level_sizes_.empty() ? 0 : kNumSpecialTokens);
  level_begin_.clear();
  for (int64_t level = 0; level < num_levels(); ++level) {
    MIRABELLE_CHECK_DATA(level_sizes_[level] > 0, "level ", level, " of the semantic IDs has size ",
                         level_sizes_[level], ", wanted at least 1");
    const int64_t room = std::numeric_limits<int32_t>::max() - kVocabMultiple - vocab_size_;
    MIRABELLE_CHECK_DATA(level_sizes_[level] <= room, "level ", level,
                         " of the semantic IDs has size ", level_sizes_[level],
                         ": the vocabulary would have more tokens than fit in 32 bits");
    level_begin_.push_back(vocab_size_);
    vocab_size_ += level_sizes_[level];
  }
  padded_vocab_size_ = (vocab_size_ + kVocabMultiple - 1) / kVocabMultiple * kVocabMultiple;
}

SemanticIds SemanticIds::after_text(int64_t num_text_tokens) const {
  MIRABELLE_CHECK_DATA(0 <= num_text_tokens && num_text_tokens <= 1 << 30, "a vocabulary of ",
                       num_text_tokens, " text tokens, wanted 0 to 2^30");
  SemanticIds ids = *this;
  ids.num_text_tokens_ = num_text_tokens;
  ids.lay_out_tokens();
  return ids;
}

std::vector<int32_t> SemanticIds::items_by_id() const {
  std::vector<int32_t> order(num_items_);
  int64_t begin = 0;
  for_each_group(all_codes(), num_levels(), [&](std::span<const int32_t> items) {
    for (const int32_t item : items) order[begin + priorities_[item]] = item;
    begin += static_cast<int64_t>(items.size());
  });
  return order;
}

SemanticIds SemanticIds::read(const std::filesystem::path& tokenizer_file) {
  return read_semantic_ids(tokenizer_file);
}

std::vector<int32_t> SemanticIds::level_bounds() const {
  std::vector<int32_t> bounds(level_begin_.begin(), level_begin_.end());
  bounds.push_back(static_cast<int32_t>(vocab_size_));
  return bounds;
}

std::vector<TokenRange> SemanticIds::token_ranges() const {
  std::vector<TokenRange> ranges;
  if (num_text_tokens_ > 0) ranges.push_back({"text", 0, num_text_tokens_});
  if (num_levels() > 0) ranges.push_back({"special", num_text_tokens_, kNumSpecialTokens});
  for (int64_t level = 0; level < num_levels(); ++level) {
    ranges.push_back({"level_" + std::to_string(level), level_begin_[level], level_sizes_[level]});
  }
  ranges.push_back({"padding", vocab_size_, padded_vocab_size_ - vocab_size_});
  return ranges;
}

SemanticIdTrie::SemanticIdTrie(const SemanticIds& ids) : items_(ids.items_by_id()) {
  // In code order, an item opens a new node at every depth below its common prefix with the item
  // before it.
  levels_.resize(ids.num_levels());
  for (int64_t i = 0; i < ids.num_items(); ++i) {
    int64_t depth = 0;
    if (i > 0) {
      const auto before = ids.codes(items_[i - 1]), codes = ids.codes(items_[i]);
      depth = std::ranges::mismatch(before, codes).in1 - before.begin();
    }
    if (depth < ids.num_levels()) item_begin_.push_back(i);
    for (; depth < ids.num_levels(); ++depth) {
      const bool new_parent =
          static_cast<int64_t>(levels_[depth].child_begin.size()) < num_nodes(depth);
      if (new_parent) levels_[depth].child_begin.push_back(levels_[depth].child_tokens.size());
      levels_[depth].child_tokens.push_back(ids.token(items_[i], depth));
    }
  }
  if (ids.num_items() == 0 && !levels_.empty()) levels_[0].child_begin.push_back(0);
  for (Level& level : levels_) level.child_begin.push_back(level.child_tokens.size());
  item_begin_.push_back(ids.num_items());
}

SemanticIdTrie::Children SemanticIdTrie::children(int64_t depth, int64_t node) const {
  assert(0 <= depth && depth < static_cast<int64_t>(levels_.size()));
  assert(0 <= node && node < num_nodes(depth));
  const Level& level = levels_[depth];
  const int64_t begin = level.child_begin[node], end = level.child_begin[node + 1];
  return {std::span(level.child_tokens).subspan(begin, end - begin), begin};
}

int64_t SemanticIdTrie::num_nodes(int64_t depth) const {
  return depth == 0 ? 1 : static_cast<int64_t>(levels_[depth - 1].child_tokens.size());
}

}  // namespace mirabelle
