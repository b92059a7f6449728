#pragma once

#include <cstdint>
#include <vector>

#include "mirabelle/comm/communicator.h"

namespace mirabelle {

struct IndexRange {
  int64_t begin = 0, end = 0;
};

/// A sum over all items that does not depend on how many ranks share the work, to the last bit. The
/// items are cut into `kNumChunks` neighbouring chunks, each of which one rank sums up in item
/// order; the chunks' sums are then added in one fixed binary tree.
///
///   CanonicalSum sum(world);
///   for (int64_t chunk = sum.chunks().begin; chunk < sum.chunks().end; ++chunk) {
///     sum.add(sum_over(CanonicalSum::items(chunk, num_items)));
///   }
///   const std::vector<double> total = sum.finish();
class CanonicalSum {
 public:
  static constexpr int64_t kNumChunks = 64;

  explicit CanonicalSum(const Communicator& communicator);

  /// The chunks of this rank.
  IndexRange chunks() const { return chunks_; }
  static IndexRange items(int64_t chunk, int64_t num_items) {
    return {num_items * chunk / kNumChunks, num_items * (chunk + 1) / kNumChunks};
  }

  /// This rank's next chunk. All chunks' sums have the same length.
  void add(std::vector<double> chunk_sum);
  /// The total, on every rank. Collective.
  std::vector<double> finish();

 private:
  /// The sum of `num_chunks` (a power of two) chunks from `first_chunk` (a multiple of it).
  struct Node {
    int64_t first_chunk, num_chunks;
    std::vector<double> sum;
  };
  void push(Node node);
  void send_nodes() const;
  void receive_nodes(int source);

  const Communicator& communicator_;
  IndexRange chunks_;
  int64_t next_chunk_;
  std::vector<Node> nodes_;  // neighbours that have no common parent yet
};

}  // namespace mirabelle
