#include "mirabelle/training/parallel_plan.h"

#include <algorithm>

#include "mirabelle/comm/collective_bytes.h"
#include "mirabelle/training/optimizer.h"
#include "mirabelle/training/trainer.h"

namespace mirabelle {
namespace {

/// What cuBLASLt, cuDNN and NCCL take on a GPU, roughly.
constexpr int64_t kLibraryBytes = int64_t{1} << 30;
/// Of checkpoints: weights and both moments, in float32.
constexpr int64_t kCheckpointElementBytes = 12;

Transformer::Limits model_limits(const PlannedRun& run) {
  return Trainer::model_limits(run.training, run.parallel, run.world_size, run.level_bounds);
}

GradientReducer::Options reducer_options(const PlannedRun& run) {
  return Trainer::reducer_options(run.training, run.parallel, run.data_parallel_size());
}

FlatPartition partition_of(const PlannedRun& run, const Transformer& model, int64_t rank) {
  return Trainer::partition_of(run.parallel, model.layout(), model.dtype(),
                               run.data_parallel_size(), rank / run.parallel.tensor_parallel_size);
}

/// Of the optimizer's state.
int64_t num_updated(const PlannedRun& run, const FlatPartition& partition) {
  return run.parallel.zero_stage > 0 ? partition.num_owned() : partition.num_elements();
}

int64_t optimizer_bytes(const PlannedRun& run, const Transformer& model,
                        const FlatPartition& partition) {
  return Optimizer::bytes(run.training, model.layout(), num_updated(run, partition), model.dtype());
}

/// cuDNN's sums of query gradients, in float32 and padded up to four times; twice that where
/// query heads share key heads. Shards take turns.
int64_t attention_scratch_bytes(const PlannedRun& run, const Transformer& model) {
  if (model.dtype() != DType::kBFloat16 || run.training.reproducible) return 0;
  const int64_t copies = run.model.num_kv_heads < run.model.num_heads ? 2 : 1;
  return 4 * copies * run.training.micro_batch_tokens * model.layout().sizes().attention_width *
         size_in_bytes(DType::kFloat32);
}

MemoryPlan plan_memory(const PlannedRun& run, const Transformer& model) {
  const FlatPartition partition = partition_of(run, model, 0);
  MemoryPlan plan;
  plan.add("weights", model.weight_bytes());
  plan.add("gradients", model.gradient_bytes());
  const int64_t sums = GradientReducer::bytes(reducer_options(run), partition, model.dtype());
  if (sums > 0) plan.add("sums of gradients", sums);
  plan.add("optimizer", optimizer_bytes(run, model, partition));
  plan.add("activations", model.activation_bytes());
  if (run.device == Device::kCuda) {
    plan.add("attention's scratch (at most)", attention_scratch_bytes(run, model));
    plan.add("libraries (estimate)", kLibraryBytes);
  }
  return plan;
}

struct Group {
  std::string name;
  int64_t size, rank;
};

/// Adds up what one rank sends. `n`: elements of the whole tensor, over all ranks of the group.
class TrafficCount {
 public:
  void all_reduce(const Group& group, const std::string& purpose, int64_t n, DType dtype,
                  Overlap overlap = Overlap::kNone) {
    add({group.name, "all_reduce", purpose, overlap}, group.size,
        all_reduce_bytes(n, size_in_bytes(dtype), group.size, group.rank));
  }
  void reduce_scatter(const Group& group, const std::string& purpose, int64_t n, DType dtype,
                      Overlap overlap = Overlap::kNone) {
    add({group.name, "reduce_scatter", purpose, overlap}, group.size,
        reduce_scatter_bytes(n, size_in_bytes(dtype), group.size, group.rank));
  }
  void all_gather(const Group& group, const std::string& purpose, int64_t n, DType dtype,
                  Overlap overlap = Overlap::kNone) {
    add({group.name, "all_gather", purpose, overlap}, group.size,
        all_gather_bytes(n, size_in_bytes(dtype), group.size, group.rank));
  }
  const std::vector<PlannedTraffic>& traffic() const { return traffic_; }

 private:
  void add(const PlannedTraffic& what, int64_t size, int64_t bytes) {
    if (size == 1) return;
    auto entry = std::find_if(traffic_.begin(), traffic_.end(), [&](const PlannedTraffic& other) {
      return other.group == what.group && other.collective == what.collective &&
             other.purpose == what.purpose && other.overlap == what.overlap;
    });
    if (entry == traffic_.end()) entry = traffic_.insert(entry, what);
    ++entry->calls;
    entry->bytes += bytes;
  }

  std::vector<PlannedTraffic> traffic_;
};

/// The communication of a step, in the order of the code that does it.
class StepTraffic {
 public:
  StepTraffic(const PlannedRun& run, const Transformer& model, int64_t rank)
      : run_(run),
        model_(model),
        parallel_(model.tensor_parallel()),
        tensor_{"tensor-parallel", parallel_.size(), rank % parallel_.size()},
        data_{"data-parallel", run.data_parallel_size(), rank / parallel_.size()},
        world_{"world", run.world_size, rank},
        partition_(partition_of(run, model, rank)) {}

  std::vector<PlannedTraffic> plan(const std::vector<int64_t>& part_tokens) {
    for (const int64_t num_tokens : part_tokens) add_pass(num_tokens);
    add_shared_gradients();
    add_reductions();
    add_grad_norm();
    if (is_sharded() && run_.training.uses_muon()) add_directions();
    if (is_sharded()) add_weights();
    const int64_t part_sums = 1 + model_.loss_options().num_levels();
    count_.all_reduce(world_, "the step's figures",
                      run_.training.num_parts() * part_sums + Trainer::kStepFigures,
                      DType::kFloat64);
    return count_.traffic();
  }

 private:
  bool is_sharded() const { return run_.parallel.zero_stage > 0 && data_.size > 1; }
  DType grad_dtype() const { return wide(model_.dtype()); }

  /// Transformer::forward_backward()
  void add_pass(int64_t num_tokens) {
    num_elements_ = num_tokens * run_.model.hidden_size;
    if (parallel_.sequence_parallel()) {
      count_.reduce_scatter(tensor_, "embedding", num_elements_, model_.dtype());
    } else {
      count_.all_reduce(tensor_, "embedding", num_elements_, model_.dtype());
    }
    for (int64_t layer = 0; layer < run_.model.num_layers; ++layer) {
      add_products("blocks, forward", 2, 2);
      // the last product of a block is not made again
      if (run_.training.model_recompute() == Recompute::kBlock) {
        add_products("blocks, again", 2, 1);
      }
      add_products("blocks, backward", 2, 0);
      add_products("blocks, backward", 2, 2, Overlap::kWeightGradients);
    }
    add_products("head", 1, 1);
    if (parallel_.share().is_split()) add_cross_entropy(num_tokens);
    add_products("embedding", 1, 0);
  }

  /// Tokens that are gathered, and sums over shards.
  void add_products(const std::string& purpose, int64_t num_gathers, int64_t num_sums,
                    Overlap overlap = Overlap::kNone) {
    const DType sum_dtype = parallel_.sum_dtype();
    for (int64_t i = 0; i < num_gathers && parallel_.sequence_parallel(); ++i) {
      count_.all_gather(tensor_, purpose, num_elements_, model_.dtype(), overlap);
    }
    for (int64_t i = 0; i < num_sums; ++i) {
      if (parallel_.sequence_parallel()) {
        count_.reduce_scatter(tensor_, purpose, num_elements_, sum_dtype, overlap);
      } else {
        count_.all_reduce(tensor_, purpose, num_elements_, sum_dtype, overlap);
      }
    }
  }

  /// Of each block of rows the largest logits, then two sums for each row.
  void add_cross_entropy(int64_t num_tokens) {
    const int64_t rows = Transformer::logits_rows(num_tokens, run_.vocab_size);
    for (int64_t begin = 0; begin < num_tokens; begin += rows) {
      const int64_t num_rows = std::min(rows, num_tokens - begin);
      count_.all_reduce(tensor_, "cross entropy", num_rows, grad_dtype());
      count_.all_reduce(tensor_, "cross entropy", 2 * num_rows, grad_dtype());
    }
  }

  /// Gradients that tensor-parallel ranks have summands of.
  void add_shared_gradients() {
    const ShardSizes& sizes = model_.layout().sizes();
    const int64_t hidden = run_.model.hidden_size, num_layers = run_.model.num_layers;
    const int64_t local_replicas =
        std::min(sizes.kv_replicas, parallel_.share().num_local_shards());
    const int64_t ranks = sizes.kv_replicas / local_replicas;
    const Group replicas = {"key/value heads", ranks, tensor_.rank % ranks};
    const int64_t passes = GradientReducer::num_final_passes(reducer_options(run_), data_.size);
    for (int64_t pass = 0; pass < passes; ++pass) {
      for (int64_t layer = 0; layer < num_layers; ++layer) {
        count_.all_reduce(replicas, "gradients of copies", 2 * run_.model.head_dim() * hidden,
                          grad_dtype());
      }
      if (parallel_.sequence_parallel()) {
        count_.all_reduce(tensor_, "gradients of norms", (2 * num_layers + 1) * hidden,
                          grad_dtype());
      }
      if (run_.model.query_key_norm && parallel_.share().is_split()) {
        count_.all_reduce(tensor_, "gradients of norms", 2 * num_layers * run_.model.head_dim(),
                          grad_dtype());
      }
      for (int64_t layer = 0; layer < num_layers && run_.model.qkv_bias; ++layer) {
        count_.all_reduce(replicas, "gradients of copies", 2 * run_.model.head_dim(), grad_dtype());
      }
    }
  }

  /// GradientReducer: those of the blocks travel while the backward pass runs.
  void add_reductions() {
    const int64_t times = GradientReducer::num_reductions(reducer_options(run_), data_.size);
    for_each_bucket([&](bool is_of_block, int64_t num_elements) {
      const Overlap overlap = is_of_block ? Overlap::kBackward : Overlap::kNone;
      for (int64_t i = 0; i < times; ++i) {
        if (is_sharded()) {
          count_.reduce_scatter(data_, "gradients", num_elements, grad_dtype(), overlap);
        } else {
          count_.all_reduce(data_, "gradients", num_elements, grad_dtype(), overlap);
        }
      }
    });
  }

  /// Of Muon: every rank makes the layers' matrices orthogonal.
  void add_directions() {
    for (int64_t layer = 0; layer < run_.model.num_layers; ++layer) {
      for (const Bucket& bucket : partition_.buckets_of(model_.layout().layer_region(layer))) {
        count_.all_gather(data_, "Muon's directions", bucket.range.size(), grad_dtype());
      }
    }
  }

  /// WeightGatherer: the first block waits for the embedding and the norms.
  void add_weights() {
    for_each_bucket([&](bool is_of_block, int64_t num_elements) {
      count_.all_gather(data_, "weights", num_elements, model_.dtype(),
                        is_of_block ? Overlap::kForward : Overlap::kNone);
    });
  }

  /// `body(is_of_block, num_elements)`
  template <typename Body>
  void for_each_bucket(Body body) const {
    const ParameterLayout& layout = model_.layout();
    for (int64_t region = 0; region < partition_.num_regions(); ++region) {
      // a head of its own is final first and used last, so it hides as blocks do
      const bool is_of_block = region > 0 && region != layout.norm_region();
      for (const Bucket& bucket : partition_.buckets_of(region)) {
        body(is_of_block, bucket.range.size());
      }
    }
  }

  /// Over all ranks between which the gradients are divided.
  void add_grad_norm() {
    const Group& group = is_sharded() ? world_ : tensor_;  // of one rank: nothing
    count_.all_reduce(group, "gradient norm", 1, DType::kFloat64);
    if (run_.training.reproducible) count_.all_reduce(group, "gradient norm", 2, DType::kInt64);
  }

  const PlannedRun& run_;
  const Transformer& model_;
  const TensorParallel& parallel_;
  Group tensor_, data_, world_;
  FlatPartition partition_;
  int64_t num_elements_ = 0;  // of the hidden states of a part
  TrafficCount count_;
};

/// Sequences that fill a part.
std::vector<int64_t> full_sequences(const PlannedRun& run, int64_t num_tokens) {
  std::vector<int64_t> lengths;
  for (int64_t left = num_tokens; left > 0; left -= lengths.back()) {
    lengths.push_back(std::min(left, run.training.max_sequence_tokens));
  }
  return lengths;
}

double as_double(int64_t n) { return static_cast<double>(n); }

/// What a part costs all tensor-parallel ranks together.
struct PartFlops {
  double useful = 0, recomputed = 0, weight_gradients = 0;
};

PartFlops part_flops(const PlannedRun& run, const Transformer& model) {
  const std::vector<int64_t> lengths = full_sequences(run, run.training.micro_batch_tokens);
  const double tokens = as_double(run.training.micro_batch_tokens);
  const double hidden = as_double(run.model.hidden_size);
  const double num_layers = as_double(run.model.num_layers);
  const ShardSizes& sizes = model.layout().sizes();
  PartFlops flops;
  flops.useful = model.training_flops(lengths);
  double attention = 0;  // of the forward pass
  for (const int64_t length : lengths) {
    attention += 2 * num_layers * hidden * as_double(length) * as_double(length);
  }
  if (run.training.model_recompute() == Recompute::kAttention) flops.recomputed = attention;
  if (run.training.model_recompute() == Recompute::kBlock) {
    const double head = 6 * as_double(run.vocab_size) * hidden * tokens;
    const double last_product = 2 * tokens * hidden * as_double(run.model.ffn_hidden_size);
    flops.recomputed = (flops.useful - head) / 3 - num_layers * last_product;
  }
  const int64_t width = sizes.qkv_width + 2 * sizes.ffn_hidden_size;
  flops.weight_gradients =
      2 * tokens * hidden * num_layers * as_double(width * model.layout().share().num_shards);
  return flops;
}

/// Of five steps of orthogonalise(), for all matrices of a rank; of a matrix [k, n], k <= n, about
/// 20 k k n, where a token's passes take 6 k n.
double muon_flops(const PlannedRun& run, const Transformer& model) {
  if (!run.training.uses_muon()) return 0;
  double flops = 0;
  for (const MatrixBatch& batch : model.layout().layer_matrices(0)) {
    const double k = as_double(std::min(batch.rows, batch.columns));
    const double n = as_double(std::max(batch.rows, batch.columns));
    flops += 5 * as_double(batch.count) * (4 * k * k * n + 2 * k * k * k);
  }
  return as_double(run.model.num_layers) * flops;
}

}  // namespace

Transformer sketch(const PlannedRun& run, int64_t rank) {
  return Transformer::sketch(run.model, run.vocab_size, run.padded_vocab_size,
                             run.training.model_dtype(), model_limits(run), run.device,
                             model_share(run.training, run.parallel, rank, run.world_size));
}

MemoryPlan plan_memory(const PlannedRun& run) { return plan_memory(run, sketch(run)); }

int64_t checkpoint_bytes(const PlannedRun& run) {
  return kCheckpointElementBytes * partition_of(run, sketch(run), 0).num_owned();
}

int64_t checkpoint_file_bytes(const PlannedRun& run) {
  return kCheckpointElementBytes * sketch(run).layout().num_model_parameters();
}

ParallelPlan plan_training(const PlannedRun& run, const std::vector<int64_t>& part_tokens,
                           int64_t rank) {
  const Transformer model = sketch(run, rank);
  ParallelPlan plan;
  plan.num_parameters = model.layout().num_model_parameters();
  plan.memory = plan_memory(run, model);
  plan.checkpoint_bytes = checkpoint_bytes(run);
  plan.traffic = StepTraffic(run, model, rank).plan(part_tokens);
  return plan;
}

ParallelPlan plan_training(const PlannedRun& run) {
  return plan_training(run,
                       std::vector<int64_t>(run.parts_per_rank(), model_limits(run).max_tokens));
}

StepEstimate estimate_step(const PlannedRun& run, const ParallelPlan& plan,
                           const MachineRates& rates) {
  const Transformer model = sketch(run);
  const FlatPartition partition = partition_of(run, model, 0);
  const double parts = as_double(run.parts_per_rank());
  const double rank_rate =
      rates.flops_per_second * rates.efficiency * as_double(run.parallel.tensor_parallel_size);
  const PartFlops flops = part_flops(run, model);
  const double forward = flops.useful / 3 / rank_rate;
  const double backward = (flops.useful * 2 / 3 + flops.recomputed) / rank_rate;

  const auto seconds_of = [&](bool is_data, Overlap overlap) {
    const double bandwidth = is_data ? rates.data_bytes_per_second : rates.tensor_bytes_per_second;
    double seconds = 0;
    for (const PlannedTraffic& entry : plan.traffic) {
      if (entry.overlap != overlap || entry.is_data_parallel() != is_data) continue;
      seconds +=
          as_double(entry.bytes) / bandwidth + as_double(entry.calls) * rates.latency_seconds;
    }
    return seconds;
  };
  const auto beyond = [](double seconds, double hidden) { return std::max(seconds - hidden, 0.0); };

  StepEstimate estimate;
  estimate.tokens = run.training.num_parts() * run.training.micro_batch_tokens;
  estimate.useful_flops = as_double(run.training.num_parts()) * flops.useful;
  estimate.compute = parts * (forward + backward);
  const int64_t updated = num_updated(run, partition);
  // the state is read and written, gradients are cleared, and read for the norm and the update
  const int64_t bytes_moved =
      2 * optimizer_bytes(run, model, partition) + updated * size_in_bytes(model.dtype()) +
      2 * updated * size_in_bytes(wide(model.dtype())) + model.gradient_bytes();
  estimate.optimizer = as_double(bytes_moved) / rates.memory_bytes_per_second +
                       muon_flops(run, model) / (rates.float32_flops_per_second * rates.efficiency);
  estimate.tensor_parallel =
      seconds_of(false, Overlap::kNone) + beyond(seconds_of(false, Overlap::kWeightGradients),
                                                 parts * flops.weight_gradients / rank_rate);
  const double reductions =
      as_double(GradientReducer::num_reductions(reducer_options(run), run.data_parallel_size()));
  estimate.data_parallel = seconds_of(true, Overlap::kNone) +
                           beyond(seconds_of(true, Overlap::kBackward), reductions * backward) +
                           beyond(seconds_of(true, Overlap::kForward), forward);
  return estimate;
}

}  // namespace mirabelle
