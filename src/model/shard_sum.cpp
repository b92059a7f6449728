#include "mirabelle/model/shard_sum.h"

#include "mirabelle/core/profile_range.h"
#include "mirabelle/kernels/convert.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle {

TensorParallel::TensorParallel(const ModelShare& share, const Communicator* group, DType dtype)
    : share_(share), group_(group), dtype_(dtype) {
  MIRABELLE_CHECK(
      !group || (group->size() == size() && group->rank() == share.tensor_parallel_rank), "rank ",
      share.tensor_parallel_rank, " of ", size(), " tensor-parallel ranks is given rank ",
      group ? group->rank() : 0, " of ", group ? group->size() : 0);
}

TensorParallel TensorParallel::without_sequence_parallel() const {
  TensorParallel same = *this;
  same.share_.sequence_parallel = false;
  return same;
}

const Communicator& TensorParallel::group() const {
  MIRABELLE_CHECK(group_ != nullptr, "a model that is split over ", size(),
                  " ranks computes without a communicator");
  return *group_;
}

TensorView TensorParallel::plan_partials(Arena& arena, const Shape& shape) const {
  const bool writes_to_out = share_.num_local_shards() == 1 && !sequence_parallel() &&
                             (size() == 1 || sum_dtype() == dtype_);
  return writes_to_out ? TensorView{} : arena.allocate(shape, sum_dtype());
}

TensorView TensorParallel::gather_tokens(const TensorView& full, const TensorView& local,
                                         const Stream& stream) const {
  if (const auto pending = start_gather_tokens(full, local, stream)) {
    pending->wait(stream);
    return full;
  }
  return local;
}

std::unique_ptr<PendingCollective> TensorParallel::start_gather_tokens(const TensorView& full,
                                                                       const TensorView& local,
                                                                       const Stream& stream) const {
  if (!sequence_parallel()) return nullptr;
  return group().start_all_gather(full, local, stream);
}

ShardSum::ShardSum(const TensorParallel& tensor_parallel, const TensorView& out, int64_t num_tokens,
                   const TensorView& partials)
    : parallel_(tensor_parallel), out_(out), sum_(out) {
  if (!partials) return;
  const Shape shape = {parallel_.share().num_local_shards(), num_tokens, out.shape[1]};
  partials_ =
      partials.reshaped({partials.num_elements()}).rows(0, shape.num_elements()).reshaped(shape);
  if (partials_.dtype == out.dtype) return;
  const int64_t rank = parallel_.sequence_parallel() ? parallel_.share().tensor_parallel_rank : 0;
  sum_ = partial(0).rows(rank * out.shape[0], (rank + 1) * out.shape[0]);
}

TensorView ShardSum::partial(int64_t local_shard) const {
  if (!partials_) return out_;
  return partials_.rows(local_shard, local_shard + 1)
      .reshaped({partials_.shape[1], partials_.shape[2]});
}

void ShardSum::start(const Stream& stream) {
  const ProfileRange range("sum over shards");
  const bool has_shards = partials_ && partials_.shape[0] > 1;
  if (parallel_.size() == 1) {
    if (partials_) tree_sum(out_, partials_, stream);  // rounds
    sum_ = out_;
  } else if (parallel_.sequence_parallel()) {
    if (has_shards) tree_sum(partial(0), partials_, stream);
    pending_ = parallel_.group().start_reduce_scatter(sum_, partial(0), ReduceOp::kSum, stream);
  } else {
    const bool is_in_place = sum_.data == partial(0).data;
    if (has_shards || !is_in_place) tree_sum(sum_, partials_, stream);
    pending_ = parallel_.group().start_all_reduce(sum_, ReduceOp::kSum, stream);
  }
}

void ShardSum::finish(const Stream& stream) {
  if (pending_) pending_->wait(stream);
  pending_.reset();
  if (sum_.data != out_.data) round_to(out_, sum_, stream);
}

}  // namespace mirabelle
