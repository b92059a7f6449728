#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/tokenizer/item_rows.h"
#include "mirabelle/tokenizer/residual_quantizer.h"
#include "mirabelle/tokenizer/tokenizer_config.h"

namespace mirabelle {

/// Means and deviations of the sources' features, the columns of `rows`, in two passes. With
/// `per_source` all features of a source get the same deviation (their root mean square).
/// Collective; the result does not depend on the number of ranks. Throws a kData Error if a feature
/// is not finite.
FeatureNormalization fit_normalization(const std::vector<FeatureSource>& sources,
                                       const ItemRows& rows, bool per_source, int64_t batch_items,
                                       const Communicator& communicator);

/// After every iteration, on every rank.
struct KMeansProgress {
  int64_t level, num_levels;
  int64_t iteration, max_iterations;
  double error;            ///< mean squared distance of an item to its code before this iteration
  double relative_change;  ///< by which the iteration before lowered it; 1 at first
  double items_per_second;
};

struct ResidualKMeans {
  std::vector<Codebook> codebooks;          ///< by level
  std::vector<std::vector<int32_t>> codes;  ///< by level: [num_items], of all items, on every rank
  std::vector<double> errors;  ///< [num_levels + 1] mean squared residual before and after a level
};

/// Residual k-means (Lloyd's iterations, level by level): the codebook of a level has
/// config.levels[level] rows, each the mean of the residuals nearest to it. A code that no item is
/// nearest to moves to the item farthest from its own code (of equals the one of lower index).
/// Where there are fewer different residuals than codes, the codebook has fewer rows.
///
/// Each rank streams its own range of items in batches through `device`; memory holds the codes of
/// all items, the codebooks, one batch (on a GPU also two more in pinned host memory) and, on rank
/// 0, config.initialization_sample items, among which it draws the first codebooks on the host.
/// Codebooks and codes are the same, to the last bit, for any number of ranks on devices of one
/// kind; on the CPU also for any config.batch_items. Collective, on host memory.
ResidualKMeans residual_kmeans(const ItemRows& rows, const TokenizerConfig& config, Device device,
                               const Communicator& communicator,
                               const std::function<void(const KMeansProgress&)>& on_progress = {});

}  // namespace mirabelle
