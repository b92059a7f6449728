#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mirabelle/comm/parallel_config.h"
#include "mirabelle/core/device.h"
#include "mirabelle/core/memory_plan.h"
#include "mirabelle/model/transformer.h"
#include "mirabelle/training/train_config.h"

namespace mirabelle {

/// A training run on ranks that need not exist.
struct PlannedRun {
  TrainingConfig training;
  ParallelConfig parallel;
  TransformerConfig model;
  int64_t vocab_size = 0;
  int64_t padded_vocab_size = 0;
  std::vector<int32_t> level_bounds = {};  ///< see LossOptions
  int64_t world_size = 1;
  Device device = Device::kCuda;

  int64_t data_parallel_size() const { return world_size / parallel.tensor_parallel_size; }
  int64_t parts_per_rank() const { return training.num_parts() / data_parallel_size(); }
};

/// The model of rank `rank`, without memory. Throws a kUsage Error that names the key if the sizes
/// do not fit together.
Transformer sketch(const PlannedRun& run, int64_t rank = 0);

/// What a rank allocates on its device, by purpose; all ranks the same. Small arrays (batches,
/// tables of positions, scalars) are not in it.
MemoryPlan plan_memory(const PlannedRun& run);

/// Host memory of a rank for the checkpoint that is being written; CPU ranks need it besides.
int64_t checkpoint_bytes(const PlannedRun& run);
/// What a checkpoint takes on the disk, but for the tokenizer and headers.
int64_t checkpoint_file_bytes(const PlannedRun& run);

/// What a collective runs beside.
enum class Overlap {
  kNone,             ///< the rank waits
  kWeightGradients,  ///< products of the backward pass that make the gradients of weights
  kBackward,         ///< the rest of the backward pass
  kForward,          ///< the next forward pass
};

/// What one rank sends to others in an optimizer step, for one purpose.
struct PlannedTraffic {
  std::string group;       ///< "tensor-parallel", "key/value heads", "data-parallel" or "world"
  std::string collective;  ///< "all_reduce", "reduce_scatter" or "all_gather"
  std::string purpose;
  Overlap overlap = Overlap::kNone;
  int64_t calls = 0, bytes = 0;

  /// Between copies of the model, not within one.
  bool is_data_parallel() const { return group == "data-parallel" || group == "world"; }
};

struct ParallelPlan {
  int64_t num_parameters = 0;    ///< of the whole model
  MemoryPlan memory;             ///< of a rank, on its device
  int64_t checkpoint_bytes = 0;  ///< see checkpoint_bytes()
  std::vector<PlannedTraffic> traffic;
};

/// `part_tokens`: of each of the rank's parts of a step, with their padding. `rank` matters where a
/// tensor cannot be cut in equal pieces. Of the communication of a step only; checkpoints,
/// validations and the comparison of replicas (training.sentinel_every_steps) add to it.
ParallelPlan plan_training(const PlannedRun& run, const std::vector<int64_t>& part_tokens,
                           int64_t rank = 0);
/// Of full parts.
ParallelPlan plan_training(const PlannedRun& run);

/// What is assumed of a machine; by default eight H100 to a node.
struct MachineRates {
  double flops_per_second = 989e12;         ///< of a GPU at its best, dense, in the model's dtype
  double efficiency = 0.5;                  ///< what the kernels of a step reach of that
  double float32_flops_per_second = 67e12;  ///< of products in float32, which Muon's are
  double memory_bytes_per_second = 3.35e12;
  double tensor_bytes_per_second = 450e9;  ///< that a rank sends: NVLink, one direction
  double data_bytes_per_second = 50e9;     ///< the same between nodes: 400 Gbit/s for each GPU
  double latency_seconds = 20e-6;          ///< of a collective
};

/// Seconds of a step by purpose. Of communication only what the rank waits for.
struct StepEstimate {
  double compute = 0;          ///< products at flops_per_second * efficiency, recomputation too
  double optimizer = 0;        ///< AdamW, limited by memory, and Muon's products
  double tensor_parallel = 0;  ///< sums and gathers of activations
  double data_parallel = 0;    ///< gradients, weights, the norm and the step's figures
  int64_t tokens = 0;          ///< of all ranks
  double useful_flops = 0;     ///< Transformer::training_flops() of all ranks

  double seconds() const { return compute + optimizer + tensor_parallel + data_parallel; }
  /// Model FLOPs utilisation (Chowdhery et al. 2022, appendix B), from 0 to 1.
  double utilisation(const PlannedRun& run, const MachineRates& rates) const {
    return useful_flops /
           (seconds() * rates.flops_per_second * static_cast<double>(run.world_size));
  }
};

/// Of full parts of sequences of max_sequence_tokens:
///   compute          all products of a rank at the reached rate
///   tensor-parallel  bytes / bandwidth + latency for each call; what runs beside products for
///                    weights' gradients counts only as far as it takes longer than they do
///   data-parallel    the same; gradients of blocks run beside the backward pass of their part,
///                    weights of blocks beside the first forward pass of the next step
/// Waiting for slower ranks, data, checkpoints and validations are not in it.
StepEstimate estimate_step(const PlannedRun& run, const ParallelPlan& plan,
                           const MachineRates& rates);

}  // namespace mirabelle
