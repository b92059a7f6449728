#pragma once

#include <memory>
#include <vector>

#include "mirabelle/comm/communicator.h"

namespace mirabelle {

/// Sums one flat gradient buffer over a group while the backward pass still runs. Ranges are added
/// as they become final; neighbouring ranges are merged until they fill a bucket, whose all-reduce
/// then starts. All ranks must add the same ranges in the same order.
class GradientReducer {
 public:
  /// `bucket_bytes`: an all-reduce starts as soon as that much is pending.
  GradientReducer(const Communicator& group, int64_t bucket_bytes);

  /// `range` is a part of the flat buffer, final on this rank. Backward order is from the end to
  /// the start, so ranges that touch the pending one on either side are merged with it.
  void add(const TensorView& range, const Stream& stream);

  /// Starts what is pending and waits for everything. Later work on `stream` sees the sums.
  void finish(const Stream& stream);

 private:
  void start_pending(const Stream& stream);

  const Communicator& group_;
  int64_t bucket_bytes_;
  TensorView pending_;
  std::vector<std::unique_ptr<PendingCollective>> under_way_;
};

}  // namespace mirabelle
