#pragma once

#include <cstdint>
#include <vector>

#include "mirabelle/data/corpus.h"

namespace mirabelle {

/// What a history is written in: the tokens of every item, row-major [num_items, num_levels].
struct TokenTable {
  int32_t start_token = 0;
  int64_t num_levels = 0;
  std::vector<int32_t> tokens;
};

/// Where the data stream stands; part of every checkpoint. Says nothing about ranks.
struct DataCursor {
  int64_t epoch = 0;
  int64_t block = 0;  ///< of the epoch
  int64_t part = 0;   ///< of the block: the next one to hand out
  bool operator==(const DataCursor&) const = default;
};

/// Training histories as packed parts, in an order that is a pure function of the corpus and the
/// options.
///
/// An epoch is all histories once. The shards are cut into segments of neighbouring users, the
/// segments shuffled, and a few at a time form a block: its histories are read, cut into sequences,
/// shuffled, and packed into parts of at most `part_tokens` tokens (data/packing.h). So memory
/// holds one block, whatever the size of the corpus, and every rank plans the same parts without
/// talking to the others.
///
/// A sequence of n events becomes n * num_levels tokens: the start token and all codes but the last
/// as input, all codes as targets.
class BatchLoader {
 public:
  struct Options {
    int64_t seed = 0;
    int64_t part_tokens = 2048;
    int64_t parts_per_step = 1;  ///< that many neighbouring parts of a block cost attention alike
    int64_t max_sequence_tokens = 1024;
    bool newest_events_only = false;  ///< of longer histories; otherwise they are cut into windows
    int64_t segment_users = 4096;
    int64_t segments_per_block = 16;
  };
  /// Throws a kData Error if no history has a training event, kUsage if a sequence cannot hold one
  /// item.
  BatchLoader(const Corpus& corpus, TokenTable token_table, const Options& options);

  /// The next `num_parts` parts of the stream, which goes on from epoch to epoch.
  struct Part {
    std::vector<int32_t> tokens, targets, positions, sequence_ids;  ///< [num_tokens]
    std::vector<int32_t> sequence_offsets;                          ///< [num_sequences + 1]
    int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  };
  struct Step {
    int64_t num_tokens = 0;   ///< of all parts; each has a target
    std::vector<Part> parts;  ///< those that were asked for
  };
  /// Fills only parts [first_part, last_part) of the step; sequence_ids count over all of it.
  Step next_step(int64_t num_parts, int64_t first_part, int64_t last_part);

  const DataCursor& cursor() const { return cursor_; }
  void seek(const DataCursor& cursor);

 private:
  struct Segment {
    int64_t shard, begin, end;  // users
  };
  struct Sequence {
    int64_t begin, length;  // events, in block_items_
  };
  void plan_epoch();
  void plan_block();
  int64_t num_blocks() const;
  void append(Part& part, const Sequence& sequence, int32_t sequence_id) const;

  const Corpus& corpus_;
  TokenTable token_table_;
  Options options_;
  DataCursor cursor_;
  std::vector<Segment> segments_;  // of the epoch, in its order
  int64_t planned_epoch_ = -1, planned_block_ = -1;
  std::vector<int32_t> block_items_;
  std::vector<std::vector<Sequence>> block_parts_;
};

}  // namespace mirabelle
