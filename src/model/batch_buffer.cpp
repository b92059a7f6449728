#include "mirabelle/model/batch_buffer.h"

#include "mirabelle/core/copy.h"

namespace mirabelle {
namespace {

TensorView upload_rows(const Buffer& to, const TensorView& from, const Stream& stream) {
  const TensorView rows = to.view().rows(0, from.shape[0]);
  copy(rows, from, stream);
  return rows;
}

}  // namespace

BatchBuffer::BatchBuffer(Device device, int64_t max_tokens) : device_(device) {
  if (device == Device::kCpu) return;
  for (Buffer* rows : {&tokens_, &targets_, &positions_, &sequence_ids_}) {
    *rows = Buffer({max_tokens}, DType::kInt32, device);
  }
  sequence_offsets_ = Buffer({max_tokens + 1}, DType::kInt32, device);
}

PackedBatch BatchBuffer::upload(const PackedBatch& batch, const Stream& stream) {
  if (device_ == Device::kCpu) return batch;
  return {upload_rows(tokens_, batch.tokens, stream), upload_rows(targets_, batch.targets, stream),
          upload_rows(positions_, batch.positions, stream),
          upload_rows(sequence_ids_, batch.sequence_ids, stream),
          upload_rows(sequence_offsets_, batch.sequence_offsets, stream)};
}

}  // namespace mirabelle
