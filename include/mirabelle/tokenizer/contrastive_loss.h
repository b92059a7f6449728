#pragma once

#include <cstdint>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/buffer.h"
#include "mirabelle/tokenizer/rq_vae_config.h"

namespace mirabelle {

/// InfoNCE (van den Oord et al. 2018) over all rows of a global batch:
///
///   mean over the rows i with a partner of  -log softmax_j(u_i u_j / temperature)[partner of i]
///
/// where j goes over the rows with a partner, but for i, and u = h / |h| with
/// contrastive_similarity: cosine, else h. The batch is cut into parts of equal size, of which each
/// rank has neighbouring ones; sums over parts are made in the tree of Communicator, so the result
/// is the same, to the last bit, for any number of ranks that divides them.
class ContrastiveLoss {
 public:
  /// Of config.parts parts of `part_rows` rows [config.contrastive_size]. `communicator`, which
  /// moves memory of `device`, must live as long as this. float32; float64 on the CPU.
  ContrastiveLoss(const RqVaeConfig& config, int64_t part_rows, DType dtype, Device device,
                  const Communicator& communicator);

  /// grad_h = weight * the loss's gradient with respect to h. Collective.
  ///   grad_h, h  [own parts * part_rows, size]
  ///   partners   [num_parts * part_rows], on the host: of each row of the batch that of its
  ///              partner; -1: it has none
  void differentiate(const TensorView& grad_h, const TensorView& h,
                     const std::vector<int32_t>& partners, double weight, const Stream& stream);

  /// [own parts] float64: of each part the sum over its rows, by the last call.
  const TensorView& losses() const { return losses_.view(); }

 private:
  const int64_t own_parts_, first_part_, part_rows_;
  const double temperature_;
  const bool is_cosine_;
  const Communicator& communicator_;
  Buffer partners_, scale_;
  Buffer all_u_;                 // [all rows, size]
  Buffer logits_, row_losses_;   // of a part: [part_rows, all rows], [part_rows]
  Buffer grad_columns_by_part_;  // [own parts, all rows, size]
  Buffer grad_columns_;          // [all rows, size]
  Buffer losses_;
  // Only of cosines.
  Buffer u_, grad_u_;   // [own rows, size]
  Buffer norm_weight_;  // 1 / sqrt(size), with which a norm by root mean square gives length 1
  Buffer rstd_, norm_workspace_;
  Buffer grad_norm_weight_;  // the norm wants it, nothing reads it
};

}  // namespace mirabelle
