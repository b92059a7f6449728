#include "mirabelle/data/batch_loader.h"

#include <algorithm>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/data/packing.h"

namespace mirabelle {

BatchLoader::BatchLoader(const Corpus& corpus, TokenTable token_table, const Options& options)
    : corpus_(corpus), token_table_(std::move(token_table)), options_(options) {
  MIRABELLE_CHECK_USAGE(options.max_sequence_tokens >= token_table_.num_levels,
                        "training.max_sequence_tokens ", options.max_sequence_tokens,
                        " does not hold one item of ", token_table_.num_levels, " tokens");
  MIRABELLE_CHECK_USAGE(options.part_tokens >= options.max_sequence_tokens, "a part of ",
                        options.part_tokens, " tokens does not hold a sequence of ",
                        options.max_sequence_tokens);
  int64_t events = 0;
  for (int64_t shard = 0; shard < corpus.num_shards(); ++shard) {
    const int64_t users = corpus.shard_users(shard);
    for (int64_t begin = 0; begin < users; begin += options.segment_users) {
      const int64_t end = std::min(users, begin + options.segment_users);
      if (events == 0) {
        for (int32_t length : corpus.read_train_lengths(shard, begin, end)) events += length;
      }
    }
  }
  MIRABELLE_CHECK_DATA(events > 0, corpus.folder().string(), ": no user has a training event");
}

void BatchLoader::seek(const DataCursor& cursor) { cursor_ = cursor; }

int64_t BatchLoader::num_blocks() const {
  const int64_t segments = static_cast<int64_t>(segments_.size());
  return (segments + options_.segments_per_block - 1) / options_.segments_per_block;
}

void BatchLoader::plan_epoch() {
  if (planned_epoch_ == cursor_.epoch) return;
  segments_.clear();
  for (int64_t shard = 0; shard < corpus_.num_shards(); ++shard) {
    const int64_t users = corpus_.shard_users(shard);
    for (int64_t begin = 0; begin < users; begin += options_.segment_users) {
      segments_.push_back({shard, begin, std::min(users, begin + options_.segment_users)});
    }
  }
  Random(random_key(options_.seed, "segments", {cursor_.epoch})).shuffle(segments_);
  planned_epoch_ = cursor_.epoch;
  planned_block_ = -1;
}

void BatchLoader::plan_block() {
  plan_epoch();
  if (planned_block_ == cursor_.block) return;
  block_items_.clear();
  block_parts_.clear();
  std::vector<Sequence> sequences;
  const int64_t max_events = options_.max_sequence_tokens / token_table_.num_levels;
  const int64_t first = cursor_.block * options_.segments_per_block;
  const int64_t last =
      std::min(first + options_.segments_per_block, static_cast<int64_t>(segments_.size()));
  for (int64_t i = first; i < last; ++i) {
    const Segment& segment = segments_[i];
    const HistoryBlock block = corpus_.read_histories(segment.shard, segment.begin, segment.end);
    for (int64_t user = 0; user < block.num_users(); ++user) {
      std::span<const int32_t> history = block.training_part(user);
      if (options_.newest_events_only && static_cast<int64_t>(history.size()) > max_events) {
        history = history.last(max_events);
      }
      const int64_t start = static_cast<int64_t>(block_items_.size());
      const int64_t length = static_cast<int64_t>(history.size());
      block_items_.insert(block_items_.end(), history.begin(), history.end());
      for (int64_t event = 0; event < length; event += max_events) {
        sequences.push_back({start + event, std::min(max_events, length - event)});
      }
    }
  }
  Random(random_key(options_.seed, "sequences", {cursor_.epoch, cursor_.block})).shuffle(sequences);

  std::vector<int64_t> lengths;
  for (const Sequence& sequence : sequences) lengths.push_back(sequence.length);
  const int64_t part_events = options_.part_tokens / token_table_.num_levels;
  for (const auto& part : pack_parts(lengths, part_events, options_.parts_per_step)) {
    block_parts_.emplace_back();
    for (const int64_t sequence : part) block_parts_.back().push_back(sequences[sequence]);
  }
  planned_block_ = cursor_.block;
}

BatchLoader::Step BatchLoader::next_step(int64_t num_parts, int64_t first_part, int64_t last_part) {
  Step step;
  step.parts.resize(last_part - first_part);
  int32_t sequence_id = 0;
  for (int64_t part = 0; part < num_parts; ++part) {
    plan_block();
    while (cursor_.part >= static_cast<int64_t>(block_parts_.size())) {
      cursor_.part = 0;
      if (++cursor_.block >= num_blocks()) {
        cursor_.block = 0;
        ++cursor_.epoch;
      }
      plan_block();
    }
    const bool is_wanted = first_part <= part && part < last_part;
    for (const Sequence& sequence : block_parts_[cursor_.part]) {
      step.num_tokens += sequence.length * token_table_.num_levels;
      if (is_wanted) append(step.parts[part - first_part], sequence, sequence_id);
      ++sequence_id;
    }
    ++cursor_.part;
  }
  return step;
}

void BatchLoader::append(Part& part, const Sequence& sequence, int32_t sequence_id) const {
  const int64_t levels = token_table_.num_levels;
  if (part.sequence_offsets.empty()) part.sequence_offsets.push_back(0);
  int32_t token = token_table_.start_token;
  for (int64_t i = 0; i < sequence.length * levels; ++i) {
    const int64_t item = block_items_[sequence.begin + i / levels];
    const int32_t target = token_table_.tokens[item * levels + i % levels];
    part.tokens.push_back(token);
    part.targets.push_back(target);
    part.positions.push_back(static_cast<int32_t>(i));
    part.sequence_ids.push_back(sequence_id);
    token = target;
  }
  part.sequence_offsets.push_back(static_cast<int32_t>(part.tokens.size()));
}

}  // namespace mirabelle
