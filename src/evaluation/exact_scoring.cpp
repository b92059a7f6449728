#include "mirabelle/evaluation/exact_scoring.h"

#include <algorithm>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/dispatch.h"
#include "mirabelle/core/error.h"
#include "mirabelle/kernels/cross_entropy.h"
#include "mirabelle/kernels/embedding.h"

namespace mirabelle {
ExactScorer::ExactScorer(Transformer& model, const SemanticIds& ids, int64_t history_length,
                         int64_t max_batch_tokens)
    : model_(model),
      ids_(ids),
      history_length_(history_length),
      max_batch_tokens_(max_batch_tokens),
      batches_(model.device(), max_batch_tokens, (history_length + 1) * ids.num_levels()),
      order_(ids.items_by_id()) {
  MIRABELLE_CHECK_DATA(model.vocab_size() == ids.vocab_size(), "the model has ", model.vocab_size(),
                       " tokens, the tokenizer ", ids.vocab_size());
  MIRABELLE_CHECK(max_batch_tokens >= (history_length + 1) * ids.num_levels(),
                  "exact scoring wants batches of at least ",
                  (history_length + 1) * ids.num_levels(), " tokens, not ", max_batch_tokens);
  const int64_t length = ids.num_levels() - 1;
  for (int64_t i = 0; i < ids.num_items(); ++i) {
    if (i == 0 || !std::ranges::equal(ids.codes(order_[i - 1]).first(length),
                                      ids.codes(order_[i]).first(length))) {
      prefix_begin_.push_back(i);
    }
  }
  prefix_begin_.push_back(ids.num_items());
}

std::vector<double> ExactScorer::scores(std::span<const int32_t> history, const Stream& stream) {
  std::vector<int32_t> tokens{ids_.bos_token()};
  const size_t length = std::min<size_t>(history.size(), history_length_);
  for (int32_t item : history.last(length)) {
    for (int64_t level = 0; level < ids_.num_levels(); ++level) {
      tokens.push_back(ids_.token(item, level));
    }
  }
  std::vector<double> scores(ids_.num_items());
  const int64_t sequence_tokens = static_cast<int64_t>(tokens.size()) + ids_.num_levels() - 1;
  const int64_t batch = max_batch_tokens_ / sequence_tokens;
  const int64_t num_prefixes = static_cast<int64_t>(prefix_begin_.size()) - 1;
  for (int64_t begin = 0; begin < num_prefixes; begin += batch) {
    score_batch(tokens, begin, std::min(begin + batch, num_prefixes), scores, stream);
  }
  return scores;
}

/// The items of the prefixes [begin, end).
void ExactScorer::score_batch(std::span<const int32_t> history_tokens, int64_t begin, int64_t end,
                              std::vector<double>& scores, const Stream& stream) {
  const int64_t num_levels = ids_.num_levels(), num_sequences = end - begin;
  std::vector<int32_t> tokens, positions, sequence_ids, offsets{0}, code_rows;
  for (int64_t prefix = begin; prefix < end; ++prefix) {
    const int32_t any_item = order_[prefix_begin_[prefix]];
    tokens.insert(tokens.end(), history_tokens.begin(), history_tokens.end());
    for (int64_t level = 0; level + 1 < num_levels; ++level) {
      tokens.push_back(ids_.token(any_item, level));
    }
    const auto sequence_end = static_cast<int32_t>(tokens.size());
    for (int32_t i = offsets.back(); i < sequence_end; ++i) {
      positions.push_back(i - offsets.back());
      sequence_ids.push_back(static_cast<int32_t>(prefix - begin));
    }
    for (int64_t level = 0; level < num_levels; ++level) {  // the row that predicts this level
      code_rows.push_back(sequence_end - static_cast<int32_t>(num_levels - level));
    }
    offsets.push_back(sequence_end);
  }
  const std::vector<int32_t> no_targets(tokens.size(), -1);
  batches_.push({.tokens = view_of(tokens),
                 .targets = view_of(no_targets),
                 .positions = view_of(positions),
                 .sequence_ids = view_of(sequence_ids),
                 .sequence_offsets = view_of(offsets)});
  const TensorView hidden = model_.forward(batches_.pop(stream), stream);
  const int64_t num_rows = num_sequences * num_levels;
  const Buffer rows({num_rows, hidden.shape[1]}, model_.dtype(), model_.device());
  const Buffer logits({num_rows, ids_.vocab_size()}, wide(model_.dtype()), model_.device());
  const Buffer wanted({num_rows}, DType::kInt32, model_.device());
  copy(wanted.view(), view_of(code_rows), stream);
  gather_rows(rows.view(), hidden, wanted.view(), stream);
  Arena counting(model_.device());
  model_.plan_logit_shards(counting, num_rows, logits.view().dtype);
  Arena arena(counting.bytes_used(), model_.device());
  const TensorView shards = model_.plan_logit_shards(arena, num_rows, logits.view().dtype);
  model_.logits(logits.view(), rows.view(), shards, stream);
  log_softmax(logits.view(), stream);
  Buffer memory;
  const TensorView log_probabilities = on_host(logits.view(), memory, stream);
  dispatch(Device::kCpu, log_probabilities.dtype, [&]<Device D, typename T>() {
    const T* log_probability = log_probabilities.as<T>();
    for (int64_t prefix = begin; prefix < end; ++prefix) {
      for (int64_t i = prefix_begin_[prefix]; i < prefix_begin_[prefix + 1]; ++i) {
        double score = 0;
        for (int64_t level = 0; level < num_levels; ++level) {
          const int64_t row = (prefix - begin) * num_levels + level;
          score += static_cast<double>(
              log_probability[row * ids_.vocab_size() + ids_.token(order_[i], level)]);
        }
        scores[order_[i]] = score;
      }
    }
  });
}

RankedLists ExactScorer::rank(std::span<const RecommendationQuery> queries, int64_t list_length,
                              const Stream& stream) {
  RankedLists lists;
  for (const RecommendationQuery& query : queries) {
    const std::vector<double> all = scores(query.history, stream);
    std::vector<int32_t> ranked;
    std::copy_if(order_.begin(), order_.end(), std::back_inserter(ranked), [&](int32_t item) {
      return !std::binary_search(query.excluded.begin(), query.excluded.end(), item);
    });
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](int32_t a, int32_t b) { return all[a] > all[b]; });
    ranked.resize(std::min<size_t>(ranked.size(), list_length));
    for (int32_t item : ranked) {
      lists.items.push_back(item);
      lists.scores.push_back(all[item]);
    }
    lists.offsets.push_back(static_cast<int64_t>(lists.items.size()));
  }
  return lists;
}

}  // namespace mirabelle
