#pragma once

#include <memory>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/buffer.h"
#include "mirabelle/model/model_share.h"

namespace mirabelle {

/// Tensor parallelism's communication: sums over the shards of a model, which live on several
/// ranks, and tokens that sequence parallelism has scattered. Every rank of the group must make the
/// same calls.
class TensorParallel {
 public:
  /// `group`: the ranks that hold the other shards; null if there are none, or if nothing is going
  /// to be computed. Must outlive this.
  TensorParallel(const ModelShare& share, const Communicator* group, DType dtype);

  /// The same for passes in which every rank has all tokens.
  TensorParallel without_sequence_parallel() const;

  const ModelShare& share() const { return share_; }
  int64_t size() const { return share_.tensor_parallel_size; }
  bool sequence_parallel() const { return share_.sequence_parallel; }
  const Communicator& group() const;

  /// In what partial sums are kept: the model's dtype in the fast mode, wide in the reproducible.
  DType sum_dtype() const { return share_.reproducible ? wide(dtype_) : dtype_; }
  /// Bytes of rows that this rank has of `num_tokens` tokens between the split tensors.
  int64_t num_local_tokens(int64_t num_tokens) const {
    return sequence_parallel() ? num_tokens / size() : num_tokens;
  }

  /// Memory for a sum of `shape`, [local shards, ...] of sum_dtype(); absent if none is needed.
  TensorView plan_partials(Arena& arena, const Shape& shape) const;

  /// full [num_tokens, n] = the ranks' local rows, in order. Without sequence parallelism that is
  /// `local` itself, and `full` may be absent.
  TensorView gather_tokens(const TensorView& full, const TensorView& local,
                           const Stream& stream) const;
  /// The same while the caller computes; null if there is nothing to wait for.
  std::unique_ptr<PendingCollective> start_gather_tokens(const TensorView& full,
                                                         const TensorView& local,
                                                         const Stream& stream) const;

 private:
  ModelShare share_;
  const Communicator* group_;
  DType dtype_;
};

/// One sum over shards, [num_tokens, n]:
///
///   ShardSum sum(tensor_parallel, out, partials);
///   for each local shard: write its summand to sum.partial(shard)
///   sum.start(stream);   // the caller may compute on
///   sum.finish(stream);  // later work on `stream` sees `out`
///
/// out  [num_tokens, n], or this rank's rows of it under sequence parallelism
class ShardSum {
 public:
  /// partials  [local shards, num_tokens, n] by TensorParallel::plan_partials, or longer;
  ///           overwritten
  ShardSum(const TensorParallel& tensor_parallel, const TensorView& out, int64_t num_tokens,
           const TensorView& partials);

  TensorView partial(int64_t local_shard) const;
  void start(const Stream& stream);
  void finish(const Stream& stream);

 private:
  const TensorParallel& parallel_;
  TensorView out_;
  TensorView partials_;  // [local shards, num_tokens, n]; absent: the only shard writes to out_
  TensorView sum_;       // where the collective leaves the sum
  std::unique_ptr<PendingCollective> pending_;
};

}  // namespace mirabelle
