#include "mirabelle/tokenizer/code_assigner.h"

#include "mirabelle/core/copy.h"
#include "mirabelle/kernels/nearest_code.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle {
namespace {

TensorView rows_of(const Codebook& codebook) {
  return view_of(codebook.rows.data(), {codebook.size, codebook.dim});
}

}  // namespace

CodeAssigner::CodeAssigner(const ItemRows& rows, const ResidualKMeans& finished, int64_t max_items,
                           int64_t max_codes, int64_t max_levels, Device device)
    : rows_(rows),
      finished_(finished),
      stream_(device),
      residual_({max_items, rows.dim}, DType::kFloat32, device),
      codes_({max_items}, DType::kInt32, device),
      distances_({max_items}, DType::kFloat32, device),
      workspace_({(max_items + 1) * max_codes}, DType::kFloat32, device) {
  if (!on_gpu()) return;
  for (Staging& staging : staging_) {
    staging.rows = Buffer::pinned({max_items, rows.dim}, DType::kFloat32);
    staging.codes = Buffer::pinned({max_levels, max_items}, DType::kInt32);
  }
  level_codes_ = Buffer({max_items}, DType::kInt32, device);
  device_codebook_ = Buffer({max_codes, rows.dim}, DType::kFloat32, device);
  device_sums_ = Buffer({max_codes, rows.dim}, DType::kFloat64, device);
  device_counts_ = Buffer({max_codes}, DType::kInt64, device);
  host_codes_ = Buffer::pinned({max_items}, DType::kInt32);
  host_distances_ = Buffer::pinned({max_items}, DType::kFloat32);
}

void CodeAssigner::start_pass(const Codebook& codebook, const std::vector<IndexRange>& batches) {
  codebook_ = rows_of(codebook);
  if (on_gpu()) {
    const TensorView on_device = device_codebook_.view().rows(0, codebook.size);
    copy(on_device, codebook_, stream_);
    codebook_ = on_device;
  }
  batches_ = &batches;
  next_batch_ = 0;
  loaded_ = {};
  if (!batches.empty()) load(batches[next_batch_++]);
}

AssignedBatch CodeAssigner::next() {
  const int64_t n = loaded_.end - loaded_.begin;
  MIRABELLE_CHECK(n > 0, "the pass has no more batches");
  const TensorView residual = residual_.view().rows(0, n);
  const TensorView codes = codes_.view().rows(0, n), distances = distances_.view().rows(0, n);
  const TensorView workspace = workspace_.view().rows(0, (n + 1) * codebook_.shape[0]);
  nearest_code(codes, residual, codebook_, workspace, stream_);
  code_distances(distances, residual, codes, codebook_, stream_);
  if (sums_) accumulate_codes(sums_, counts_, residual, codes, stream_);
  AssignedBatch result{codes.as<int32_t>(), distances.as<float>()};
  if (on_gpu()) {
    copy(host_codes_.view().rows(0, n), codes, stream_);
    copy(host_distances_.view().rows(0, n), distances, stream_);
    assigned_.record(stream_);
    result = {host_codes_.view().as<int32_t>(), host_distances_.view().as<float>()};
  }
  loaded_ = {};
  if (next_batch_ < batches_->size()) load((*batches_)[next_batch_++]);
  assigned_.synchronize();
  return result;
}

void CodeAssigner::start_sums(double* sums, int64_t* counts) {
  host_sums_ = sums_ = view_of(sums, codebook_.shape);
  host_counts_ = counts_ = view_of(counts, {codebook_.shape[0]});
  if (!on_gpu()) return;
  sums_ = device_sums_.view().rows(0, codebook_.shape[0]);
  counts_ = device_counts_.view().rows(0, codebook_.shape[0]);
  fill_zero(sums_, stream_);
  fill_zero(counts_, stream_);
}

void CodeAssigner::finish_sums() {
  if (on_gpu()) {
    copy(host_sums_, sums_, stream_);
    copy(host_counts_, counts_, stream_);
    stream_.synchronize();
  }
  sums_ = counts_ = TensorView();
}

std::vector<float> CodeAssigner::residual_of(int64_t item) {
  load({item, item + 1});
  loaded_ = {};
  std::vector<float> residual(rows_.dim);
  copy(view_of(residual.data(), {1, rows_.dim}), residual_.view().rows(0, 1), stream_);
  stream_.synchronize();
  return residual;
}

void CodeAssigner::load(IndexRange items) {
  loaded_ = items;
  const TensorView residual = residual_.view().rows(0, items.end - items.begin);
  Staging& staging = staging_[num_loaded_++ % staging_.size()];
  if (on_gpu()) {
    staging.uploaded.synchronize();  // of the batch before last
    const TensorView staged = staging.rows.view().rows(0, items.end - items.begin);
    rows_.read(items.begin, items.end, staged.as<float>());
    copy(residual, staged, stream_);
  } else {
    rows_.read(items.begin, items.end, residual.as<float>());
  }
  const int64_t num_finished = static_cast<int64_t>(finished_.codebooks.size());
  for (int64_t level = 0; level < num_finished; ++level) {
    subtract_code(residual, finished_codes(level, staging), finished_codebook(level), stream_);
  }
  staging.uploaded.record(stream_);
}

/// Of the loaded items. On a GPU one level after the other takes the same memory.
TensorView CodeAssigner::finished_codes(int64_t level, const Staging& staging) {
  const int64_t n = loaded_.end - loaded_.begin;
  const TensorView codes = view_of(finished_.codes[level].data() + loaded_.begin, {n});
  if (!on_gpu()) return codes;
  const TensorView all = staging.codes.view().rows(level, level + 1);
  const TensorView staged = all.reshaped({all.num_elements()}).rows(0, n);
  const TensorView on_device = level_codes_.view().rows(0, n);
  copy(staged, codes, stream_);
  copy(on_device, staged, stream_);
  return on_device;
}

TensorView CodeAssigner::finished_codebook(int64_t level) {
  const TensorView codebook = rows_of(finished_.codebooks[level]);
  if (!on_gpu()) return codebook;
  if (level == static_cast<int64_t>(finished_codebooks_.size())) {
    finished_codebooks_.emplace_back(codebook.shape, codebook.dtype, Device::kCuda);
    copy(finished_codebooks_.back().view(), codebook, stream_);
  }
  return finished_codebooks_[level].view();
}

}  // namespace mirabelle
