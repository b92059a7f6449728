#pragma once

#include <array>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/model/transformer.h"

namespace mirabelle {

/// Brings packed batches from the host to the model's device, one ahead of their use. Where that is
/// the host, batches stay where they are, unless they must be padded to a multiple of tokens.
///
/// On a GPU a batch is copied from pinned memory, on a stream of its own, while the one before is
/// computed with; and it gets one shape, so that one CUDA graph serves all: `max_tokens` tokens, of
/// which those that it does not have form sequences without targets, and a number of sequences that
/// is a power of two, of which the last may be empty. Rows of the batch's own tokens come first.
class BatchQueue {
 public:
  /// `token_multiple`: see ModelShare; divides max_tokens.
  BatchQueue(Device device, int64_t max_tokens, int64_t max_sequence_tokens,
             int64_t token_multiple = 1);

  /// Starts the copy of a batch. At most two wait. A host's batch must live until it is popped and
  /// used; for a GPU it may be reused at once.
  void push(const PackedBatch& batch);

  /// The oldest batch pushed and not yet popped, for work on `stream`; valid until the next pop,
  /// in the same memory each time.
  PackedBatch pop(const Stream& stream);

 private:
  static constexpr int kSlots = 2;
  /// A batch on its way.
  struct Slot {
    Buffer pinned;         // on the host
    Buffer staging;        // the same on the GPU
    Event copied, popped;  // the pinned memory was read; the staging buffer was
    int64_t num_sequences = 0;
    PackedBatch on_host;
    std::vector<int32_t> padded;  // memory of on_host, if it had to be padded
  };
  void push_on_host(Slot& slot, const PackedBatch& batch) const;

  Device device_;
  int64_t max_tokens_, max_sequence_tokens_, token_multiple_;
  std::unique_ptr<Stream> copies_;  // on a GPU
  std::array<Slot, kSlots> slots_;
  Buffer current_;
  int64_t num_pushed_ = 0, num_popped_ = 0;
};

/// Fills `out` (its tensors on the host) with `batch` and dummy sequences, to the size of `out`.
/// Separate so that it can be tested without a GPU.
void pad_batch(const PackedBatch& out, const PackedBatch& batch, int64_t max_sequence_tokens);

/// How many sequences a batch of `max_tokens` tokens is padded to.
int64_t num_padded_sequences(const PackedBatch& batch, int64_t max_tokens,
                             int64_t max_sequence_tokens);

}  // namespace mirabelle
