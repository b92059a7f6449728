#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/config_fields.h"
#include "mirabelle/data/corpus.h"

namespace mirabelle {

/// Which items are met together with which, as lists of weighted partners.
struct CoOccurrences {
  std::vector<int64_t> offsets;   ///< [num_items + 1]
  std::vector<int32_t> partners;  ///< of item i: [offsets[i], offsets[i + 1]), heaviest first
  std::vector<float> weights;     ///< of the same length, positive
  /// A partner of the item, drawn in proportion to the weights by `uniform` in [0, 1); -1 if it has
  /// none.
  int32_t draw(int64_t item, double uniform) const;
};

struct CoOccurrenceConfig {
  int64_t window = 5;
  std::string weighting = "uniform";
  int64_t max_partners = 20;
  int64_t min_count = 1;

  void visit(ConfigFields& fields);
  /// Throws a kUsage Error that names the field.
  void check() const;
};

/// Counts how often items are met together: in one user's training events (nothing of a validation
/// or test target is read), at most `window` events apart. An event does not meet others of its own
/// item. The weight of a pair that was met n >= min_count times, symmetric:
///
///   uniform           n
///   inverse_distance  the sum of 1 / (how many events apart) over the n times
///   pmi               log(n N / (n_a n_b)), the pointwise mutual information, where it is
///   positive;
///                     n_a and n_b: how often the two items met any, N: the sum over all items
///
/// An item keeps its max_partners heaviest partners (of equal weight those of lower index), so it
/// may lack one that has it.
///
/// Users are streamed. Each rank counts for a range of items, and so that it never holds more than
/// about `max_meetings` meetings (24 bytes each), for a few of them at a time: it reads all
/// training events once for each such part of its range. Beside that, memory holds the result, and
/// eight bytes for every item. The result is on every rank, and the same for any number of them and
/// for any max_meetings. Collective, on host memory.
CoOccurrences count_co_occurrences(const Corpus& corpus, const CoOccurrenceConfig& config,
                                   const Communicator& communicator,
                                   int64_t max_meetings = 1 << 24);

}  // namespace mirabelle
