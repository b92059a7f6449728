#pragma once

#include "mirabelle/core/buffer.h"
#include "mirabelle/model/transformer.h"

namespace mirabelle {

/// Brings packed batches from the host to the model's device. Where that is the host, batches stay
/// where they are.
class BatchBuffer {
 public:
  BatchBuffer(Device device, int64_t max_tokens);

  /// The batch on the device, in stream order; valid until the next call. The host's may be reused
  /// at once.
  PackedBatch upload(const PackedBatch& batch, const Stream& stream);

 private:
  Device device_;
  Buffer tokens_, targets_, positions_, sequence_ids_, sequence_offsets_;
};

}  // namespace mirabelle
