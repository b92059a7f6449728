#include "mirabelle/model/batch_queue.h"

#include <algorithm>
#include <bit>

#include "mirabelle/core/copy.h"

namespace mirabelle {
namespace {

int64_t num_sequences(const PackedBatch& batch) { return batch.sequence_offsets.shape[0] - 1; }

/// A power of two, at least 16.
int64_t rounded_up(int64_t n) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(n, 16))));
}

int64_t rounded_up_to(int64_t multiple, int64_t n) {
  return (n + multiple - 1) / multiple * multiple;
}

/// The parts of a batch within one block of int32.
PackedBatch batch_in(void* memory, Device device, int64_t num_tokens, int64_t num_sequences) {
  int64_t begin = 0;
  const auto take = [&](int64_t n) {
    TensorView part = {static_cast<int32_t*>(memory) + begin, {n}, DType::kInt32, device};
    begin += n;
    return part;
  };
  PackedBatch batch;
  batch.tokens = take(num_tokens);
  batch.targets = take(num_tokens);
  batch.positions = take(num_tokens);
  batch.sequence_ids = take(num_tokens);
  batch.sequence_offsets = take(num_sequences + 1);
  return batch;
}

}  // namespace

int64_t num_padded_sequences(const PackedBatch& batch, int64_t max_tokens,
                             int64_t max_sequence_tokens) {
  const int64_t dummy_tokens = max_tokens - batch.tokens.num_elements();
  const int64_t dummies = (dummy_tokens + max_sequence_tokens - 1) / max_sequence_tokens;
  return rounded_up(num_sequences(batch) + dummies);
}

void pad_batch(const PackedBatch& out, const PackedBatch& batch, int64_t max_sequence_tokens) {
  const int64_t own = batch.tokens.num_elements(), total = out.tokens.num_elements();
  const auto put = [&](const TensorView& to, const TensorView& from, int32_t padding) {
    std::copy_n(from.as<int32_t>(), from.num_elements(), to.as<int32_t>());
    std::fill(to.as<int32_t>() + from.num_elements(), to.as<int32_t>() + to.num_elements(),
              padding);
  };
  put(out.tokens, batch.tokens, 0);
  put(out.targets, batch.targets, -1);
  put(out.positions, batch.positions, 0);
  put(out.sequence_ids, batch.sequence_ids, 0);
  put(out.sequence_offsets, batch.sequence_offsets, static_cast<int32_t>(total));
  int32_t* next_end = out.sequence_offsets.as<int32_t>() + batch.sequence_offsets.num_elements();
  for (int64_t begin = own; begin < total; begin += max_sequence_tokens) {
    const int64_t end = std::min(begin + max_sequence_tokens, total);
    for (int64_t i = begin; i < end; ++i) {
      out.positions.as<int32_t>()[i] = static_cast<int32_t>(i - begin);
    }
    *next_end++ = static_cast<int32_t>(end);
  }
}

BatchQueue::BatchQueue(Device device, int64_t max_tokens, int64_t max_sequence_tokens,
                       int64_t token_multiple)
    : device_(device),
      max_tokens_(max_tokens),
      max_sequence_tokens_(max_sequence_tokens),
      token_multiple_(token_multiple) {
  MIRABELLE_CHECK(max_tokens % token_multiple == 0, "batches of at most ", max_tokens,
                  " tokens, which is not a multiple of ", token_multiple);
  if (device == Device::kCpu) return;
  // Every sequence has a token, so there are never more than max_tokens of them.
  const int64_t bytes =
      (4 * max_tokens + rounded_up(max_tokens) + 1) * size_in_bytes(DType::kInt32);
  copies_ = std::make_unique<Stream>(device);
  current_ = Buffer(bytes, device);
  for (Slot& slot : slots_) {
    slot.pinned = Buffer::pinned({bytes}, DType::kUint8);
    slot.staging = Buffer(bytes, device);
  }
}

void BatchQueue::push(const PackedBatch& batch) {
  MIRABELLE_CHECK(num_pushed_ - num_popped_ < kSlots, "a third batch is pushed, two wait");
  MIRABELLE_CHECK(batch.tokens.num_elements() <= max_tokens_, "a batch of ",
                  batch.tokens.num_elements(), " tokens, planned were at most ", max_tokens_);
  Slot& slot = slots_[num_pushed_++ % kSlots];
  if (device_ == Device::kCpu) return push_on_host(slot, batch);
  slot.copied.synchronize();  // of the batch before; long done
  slot.num_sequences = num_padded_sequences(batch, max_tokens_, max_sequence_tokens_);
  const PackedBatch padded =
      batch_in(slot.pinned.data(), Device::kCpu, max_tokens_, slot.num_sequences);
  pad_batch(padded, batch, max_sequence_tokens_);
  const int64_t used = 4 * max_tokens_ + slot.num_sequences + 1;
  slot.popped.hold(*copies_);
  copy({slot.staging.data(), {used}, DType::kInt32, device_},
       {slot.pinned.data(), {used}, DType::kInt32, Device::kCpu}, *copies_);
  slot.copied.record(*copies_);
}

/// At most one sequence of padding.
void BatchQueue::push_on_host(Slot& slot, const PackedBatch& batch) const {
  const int64_t num_tokens = rounded_up_to(token_multiple_, batch.tokens.num_elements());
  slot.on_host = batch;
  if (num_tokens == batch.tokens.num_elements()) return;
  const int64_t num_padded = num_sequences(batch) + 1;
  slot.padded.resize(4 * num_tokens + num_padded + 1);
  slot.on_host = batch_in(slot.padded.data(), Device::kCpu, num_tokens, num_padded);
  pad_batch(slot.on_host, batch, token_multiple_);
}

PackedBatch BatchQueue::pop(const Stream& stream) {
  MIRABELLE_CHECK(num_popped_ < num_pushed_, "a batch is popped, none waits");
  Slot& slot = slots_[num_popped_++ % kSlots];
  if (device_ == Device::kCpu) return slot.on_host;
  const int64_t used = 4 * max_tokens_ + slot.num_sequences + 1;
  slot.copied.hold(stream);
  copy({current_.data(), {used}, DType::kInt32, device_},
       {slot.staging.data(), {used}, DType::kInt32, device_}, stream);
  slot.popped.record(stream);
  return batch_in(current_.data(), device_, max_tokens_, slot.num_sequences);
}

}  // namespace mirabelle
