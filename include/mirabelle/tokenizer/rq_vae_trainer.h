#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/tokenizer/co_occurrence.h"
#include "mirabelle/tokenizer/item_rows.h"
#include "mirabelle/tokenizer/rq_vae.h"

namespace mirabelle {

/// Every few steps and after the last, on every rank.
struct RqVaeProgress {
  int64_t step, steps;    ///< done, of
  double reconstruction;  ///< the losses of the last step: means over its items, unweighted
  double quantization;    ///< sum over the levels of |r_l - e_l|^2
  double contrastive;     ///< mean over the rows that have a partner
  double total;           ///< what the step minimised
  double used_codes;      ///< share of all codes that items had since the last report
  double items_per_second;
};

/// Trains an RQ-VAE on the items of `rows`, whose columns are the normalised features of `sources`.
/// A step of AdamW takes config.batch_items items; epochs go through all of them in a random order,
/// of single items or, of more than 2^20, of runs of 64 neighbours, so that reading streams. With a
/// contrastive loss each item of the batch comes with a partner drawn from `pairs`. The partners
/// take part in that loss only (tokenizer/contrastive_loss.h), and where an item has none both do
/// not.
///
/// The batch is cut into config.parts neighbouring parts, each of which one rank computes by
/// itself, and their gradients are added in the tree of Communicator. So weights and reports are
/// the same, to the last bit, for any number of ranks on devices of one kind. Memory holds
/// config.parts / ranks times the weights and the activations of a part.
///
/// Throws a kUsage Error if the ranks do not divide config.parts or config.contrastive_weight is
/// positive without `pairs`. Collective; `communicator` moves memory of `device` and of the host.
RqVae fit_rq_vae(const ItemRows& rows, const std::vector<FeatureSource>& sources,
                 const CoOccurrences* pairs, const std::vector<int64_t>& levels,
                 const RqVaeConfig& config, int64_t seed, Device device,
                 const Communicator& communicator,
                 const std::function<void(const RqVaeProgress&)>& on_progress = {});

}  // namespace mirabelle
