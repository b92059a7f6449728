#pragma once

#include <span>
#include <vector>

#include "mirabelle/model/parameters.h"

namespace mirabelle {

/// A part of a region of the flat parameters that data-parallel ranks reduce, own and gather
/// together, each an equal piece.
struct Bucket {
  FlatRange range;           ///< in the flat array
  FlatRange owned;           ///< this rank's piece of it
  int64_t owned_offset = 0;  ///< of that piece in arrays of what this rank owns
};

/// How data-parallel ranks share a flat array: every region is cut in buckets, every bucket in as
/// many pieces as there are ranks. A pure function of its arguments.
class FlatPartition {
 public:
  /// The layout's share.flat_multiple must be a multiple of flat_multiple(num_ranks).
  FlatPartition(const ParameterLayout& layout, int64_t num_ranks, int64_t rank,
                int64_t bucket_elements);

  /// What regions must be padded to.
  static int64_t flat_multiple(int64_t num_ranks) { return kPieceMultiple * num_ranks; }

  int64_t num_ranks() const { return num_ranks_; }
  int64_t num_elements() const { return num_elements_; }
  int64_t num_regions() const { return static_cast<int64_t>(first_bucket_.size()) - 1; }
  int64_t num_owned() const { return num_elements_ / num_ranks_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }  ///< in flat order
  std::span<const Bucket> buckets_of(int64_t region) const;
  std::vector<FlatRange> owned_ranges() const;

 private:
  static constexpr int64_t kPieceMultiple = 16;  // pieces are aligned as buffers are

  int64_t num_ranks_, num_elements_;
  std::vector<Bucket> buckets_;
  std::vector<int64_t> first_bucket_;  // of each region, and the end
};

}  // namespace mirabelle
