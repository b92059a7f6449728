#include "mirabelle/training/flat_partition.h"

#include <algorithm>

#include "mirabelle/core/error.h"

namespace mirabelle {

FlatPartition::FlatPartition(const ParameterLayout& layout, int64_t num_ranks, int64_t rank,
                             int64_t bucket_elements)
    : num_ranks_(num_ranks), num_elements_(layout.num_elements()) {
  const int64_t multiple = flat_multiple(num_ranks);
  MIRABELLE_CHECK(num_ranks == 1 || layout.share().flat_multiple % multiple == 0,
                  "a flat array whose regions are multiples of ", layout.share().flat_multiple,
                  " cannot be shared by ", num_ranks, " ranks");
  const int64_t bucket_size = std::max(bucket_elements / multiple, int64_t{1}) * multiple;
  int64_t owned_offset = 0;
  for (const FlatRange& region : layout.regions()) {
    first_bucket_.push_back(static_cast<int64_t>(buckets_.size()));
    for (int64_t begin = region.begin; begin < region.end; begin += bucket_size) {
      const int64_t end = std::min(begin + bucket_size, region.end);
      const int64_t piece = (end - begin) / num_ranks, first = begin + rank * piece;
      buckets_.push_back({{begin, end}, {first, first + piece}, owned_offset});
      owned_offset += piece;
    }
  }
  first_bucket_.push_back(static_cast<int64_t>(buckets_.size()));
}

std::span<const Bucket> FlatPartition::buckets_of(int64_t region) const {
  const int64_t first = first_bucket_[region];
  return std::span(buckets_).subspan(first, first_bucket_[region + 1] - first);
}

std::vector<FlatRange> FlatPartition::owned_ranges() const {
  std::vector<FlatRange> ranges;
  for (const Bucket& bucket : buckets_) {
    if (!ranges.empty() && ranges.back().end == bucket.owned.begin) {
      ranges.back().end = bucket.owned.end;
    } else {
      ranges.push_back(bucket.owned);
    }
  }
  return ranges;
}

}  // namespace mirabelle
