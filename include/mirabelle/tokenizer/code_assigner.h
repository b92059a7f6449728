#pragma once

#include <array>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/tokenizer/canonical_sum.h"
#include "mirabelle/tokenizer/residual_kmeans.h"

namespace mirabelle {

/// What a batch of items was given, on the host. Valid until the next one.
struct AssignedBatch {
  const int32_t* codes;    ///< the codebook row nearest to what the finished levels left of an item
  const float* distances;  ///< its squared distance
};

/// One level's passes over items, batch by batch, on the CPU or a GPU: what the finished levels
/// leave of the items, the nearest codes, and the residuals of each code added up.
///
///   assigner.start_pass(codebook, batches);
///   for (each of the batches) {
///     const AssignedBatch batch = assigner.next();
///   }
///
/// The host reads a batch while the GPU works on the one before; the CPU works on items where they
/// were read to.
class CodeAssigner {
 public:
  /// `rows` and `finished` must live as long as this; levels that are added to `finished` count
  /// from the next pass on. Batches have at most `max_items` items, codebooks at most `max_codes`
  /// rows; there are at most `max_levels` levels.
  CodeAssigner(const ItemRows& rows, const ResidualKMeans& finished, int64_t max_items,
               int64_t max_codes, int64_t max_levels, Device device);

  /// Both arguments must live, unchanged, until the pass is over.
  void start_pass(const Codebook& codebook, const std::vector<IndexRange>& batches);

  /// Assigns the next batch of the pass, and waits for the result. Throws if there is none.
  AssignedBatch next();

  /// From now on the residuals of every batch are added to `sums` [codebook.size, dim], and their
  /// numbers to `counts` [codebook.size], by their codes. Both must be zeros now and are complete
  /// when finish_sums(), which ends this, returns.
  void start_sums(double* sums, int64_t* counts);
  void finish_sums();

  /// What the finished levels leave of one item. Between passes.
  std::vector<float> residual_of(int64_t item);

 private:
  /// Pinned memory that the GPU copies a batch from.
  struct Staging {
    Buffer rows;     // [max_items, dim]
    Buffer codes;    // [max_levels, max_items] of the finished levels
    Event uploaded;  // both were read
  };
  bool on_gpu() const { return stream_.device() == Device::kCuda; }
  void load(IndexRange items);
  TensorView finished_codes(int64_t level, const Staging& staging);
  TensorView finished_codebook(int64_t level);

  const ItemRows& rows_;
  const ResidualKMeans& finished_;
  const Stream stream_;

  const std::vector<IndexRange>* batches_ = nullptr;
  size_t next_batch_ = 0;  // to be loaded
  IndexRange loaded_;      // whose residual_ is, or is about to be, there
  TensorView codebook_;
  Buffer residual_, codes_, distances_, workspace_;
  TensorView sums_, counts_;            // absent when nothing is added up
  TensorView host_sums_, host_counts_;  // where they go in the end

  // Only on a GPU.
  std::array<Staging, 2> staging_;
  int64_t num_loaded_ = 0;
  Buffer level_codes_, device_codebook_, device_sums_, device_counts_;
  std::vector<Buffer> finished_codebooks_;
  Buffer host_codes_, host_distances_;  // pinned
  Event assigned_;                      // both are there
};

}  // namespace mirabelle
