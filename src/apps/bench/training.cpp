#include "bench/training.h"

#include <chrono>
#include <cmath>
#include <iostream>

#include "mirabelle/core/memory_plan.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/random.h"
#include "mirabelle/core/table.h"
#include "mirabelle/model/batch_queue.h"
#include "mirabelle/training/micro_step.h"
#include "mirabelle/training/optimizer.h"

namespace mirabelle {
namespace {

using nlohmann::json;

struct Preset {
  const char* name;
  int64_t hidden, layers, heads, kv_heads, ffn, vocab;
};
/// Shapes whose published figures can be compared with: GPT-2's size, and those of Qwen2.5.
constexpr Preset kPresets[] = {{"tiny", 128, 4, 4, 4, 384, 1024},
                               {"125M", 768, 12, 12, 12, 2048, 50304},
                               {"0.5B", 896, 24, 14, 2, 4864, 151936},
                               {"1.5B", 1536, 28, 12, 2, 8960, 151936}};

const Preset& find_preset(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) return preset;
  }
  throw_error(ErrorKind::kUsage, "no model '", name, "'; there are ", training_presets());
}

/// The lengths of a micro-batch's sequences. Skewed ones are log-normal, with a median of an eighth
/// of the longest and a deviation of 1: most users are short, most work is in the long ones.
std::vector<int64_t> draw_lengths(const TrainingBenchOptions& options, int64_t micro_batch) {
  Random random(random_key(1, "benchmark lengths", {micro_batch}));
  std::vector<int64_t> lengths;
  for (int64_t left = options.micro_batch_tokens; left > 0; left -= lengths.back()) {
    double length = static_cast<double>(options.sequence);
    if (options.skewed) {
      const double normal = random_normal(random_key(2, "benchmark lengths", {micro_batch}),
                                          static_cast<int64_t>(lengths.size()));
      length = std::clamp(length / 8 * std::exp(normal), 4.0, length);
    }
    lengths.push_back(std::min(static_cast<int64_t>(length), left));
  }
  return lengths;
}

/// Random tokens; each is to be predicted from those before it.
struct HostBatch {
  HostBatch(const std::vector<int64_t>& lengths, int64_t vocab_size) {
    Random random(random_key(3, "benchmark tokens"));
    for (size_t sequence = 0; sequence < lengths.size(); ++sequence) {
      for (int64_t i = 0; i < lengths[sequence]; ++i) {
        tokens.push_back(static_cast<int32_t>(random.below(vocab_size)));
        targets.push_back(static_cast<int32_t>(random.below(vocab_size)));
        positions.push_back(static_cast<int32_t>(i));
        sequence_ids.push_back(static_cast<int32_t>(sequence));
      }
      offsets.push_back(static_cast<int32_t>(tokens.size()));
    }
  }
  PackedBatch view() const {
    return {view_of(tokens), view_of(targets), view_of(positions), view_of(sequence_ids),
            view_of(offsets)};
  }
  std::vector<int32_t> tokens, targets, positions, sequence_ids, offsets = {0};
};

/// One model, and the steps that are timed.
class TrainingBench {
 public:
  TrainingBench(const Preset& preset, const TrainingBenchOptions& options, Device device)
      : options_(options),
        stream_(device, options.reproducible),
        model_(config(preset), preset.vocab, preset.vocab, options.dtype,
               {options.micro_batch_tokens, options.sequence, /*training=*/true}, device),
        queue_(device, options.micro_batch_tokens, options.sequence),
        micro_step_(model_, /*use_graph=*/true),
        alone_(make_self_communicator()),
        partition_(model_.layout(), 1, 0, model_.layout().num_elements()),
        reducer_(model_, partition_, *alone_, {}),
        optimizer_(model_.layout(), partition_, reducer_, {}, options.dtype, device, nullptr) {
    const Buffer values({model_.layout().num_elements()}, wide(options.dtype));
    initialize_weights(values.view(), model_.layout(), model_.config(), model_.vocab_size(), 0);
    optimizer_.set_weights(model_.weights(), values.view(), stream_);
    for (int64_t i = 0; i < options.micro_batches; ++i) {
      const std::vector<int64_t> lengths = draw_lengths(options, i);
      batches_.emplace_back(lengths, preset.vocab);
      flops_ += model_.training_flops(lengths);
    }
  }

  /// Seconds of a step: the median over some, each waited for as in training.
  double seconds() {
    constexpr int kRounds = 7;
    for (int i = 0; i < 3; ++i) step();  // kernel by kernel, recorded, launched
    std::vector<double> rounds;
    for (int round = 0; round < kRounds; ++round) {
      const auto start = std::chrono::steady_clock::now();
      step();
      rounds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return median(rounds);
  }

  double tokens() const {
    return static_cast<double>(options_.micro_batch_tokens * options_.micro_batches);
  }
  double flops() const { return flops_; }
  int64_t parameters() const { return model_.layout().num_elements(); }
  int64_t bytes() const {
    return model_.weight_bytes() + model_.gradient_bytes() + model_.activation_bytes() +
           Optimizer::bytes({}, model_.layout(), parameters(), options_.dtype);
  }

 private:
  static TransformerConfig config(const Preset& preset) {
    TransformerConfig config;
    config.hidden_size = preset.hidden;
    config.num_layers = preset.layers;
    config.num_heads = preset.heads;
    config.num_kv_heads = preset.kv_heads;
    config.ffn_hidden_size = preset.ffn;
    config.dropout = 0;
    return config;
  }

  void step() {
    model_.begin_step(1 / tokens(), 0, num_steps_, stream_);
    queue_.push(batches_.front().view());
    for (size_t i = 0; i < batches_.size(); ++i) {
      if (i + 1 < batches_.size()) queue_.push(batches_[i + 1].view());
      micro_step_.run(queue_.pop(stream_), {}, stream_);
    }
    optimizer_.update(model_.weights(), num_steps_++, 1e-4, std::numeric_limits<double>::max(),
                      stream_);
    stream_.synchronize();
  }

  TrainingBenchOptions options_;
  Stream stream_;
  Transformer model_;
  BatchQueue queue_;
  MicroStep micro_step_;
  std::unique_ptr<Communicator> alone_;
  FlatPartition partition_;
  GradientReducer reducer_;
  Optimizer optimizer_;
  std::vector<HostBatch> batches_;
  double flops_ = 0;
  int64_t num_steps_ = 0;
};

}  // namespace

std::string training_presets() {
  std::string names;
  for (const Preset& preset : kPresets)
    names += (names.empty() ? "" : ", ") + std::string(preset.name);
  return names;
}

void TrainingBenchOptions::check() const {
  for (const std::string& model : models) find_preset(model);
  MIRABELLE_CHECK_USAGE(micro_batch_tokens > 0 && micro_batches > 0 && sequence > 0,
                        "--micro-batch-tokens, --micro-batches and --sequence must be positive");
  MIRABELLE_CHECK_USAGE(sequence <= micro_batch_tokens, "--sequence ", sequence,
                        " is longer than --micro-batch-tokens ", micro_batch_tokens);
}

json bench_training(const TrainingBenchOptions& options, Device device) {
  Table table({"model", "parameters", "memory", "ms/step", "tokens/s", "useful TFLOP/s",
               "of products", "of datasheet"});
  json results = json::array();
  const MachineLimits datasheet = datasheet_limits(device, options.dtype);
  MachineLimits limits = measure_limits(device, options.dtype);
  for (const std::string& name : options.models) {
    TrainingBench bench(find_preset(name), options, device);
    const double seconds = bench.seconds(), rate = bench.flops() / seconds;
    limits = better(limits, measure_limits(device, options.dtype));
    table.add_row({name, format_count(bench.parameters()), format_bytes(bench.bytes()),
                   format_number(seconds * 1e3, 1),
                   format_count(static_cast<int64_t>(bench.tokens() / seconds)),
                   format_number(rate / 1e12, 3), format_share(rate, limits.flops_per_second),
                   format_share(rate, datasheet.flops_per_second)});
    results.push_back({{"model", name},
                       {"parameters", bench.parameters()},
                       {"bytes", bench.bytes()},
                       {"seconds_per_step", seconds},
                       {"tokens_per_step", bench.tokens()},
                       {"flops_per_step", bench.flops()},
                       {"tokens_per_second", bench.tokens() / seconds},
                       {"fraction_of_products", rate / limits.flops_per_second}});
  }
  table.print(std::cout);
  std::cout << '\n' << describe(limits, datasheet) << '\n';
  return {{"micro_batch_tokens", options.micro_batch_tokens},
          {"micro_batches", options.micro_batches},
          {"sequence", options.sequence},
          {"skewed", options.skewed},
          {"limits", to_json(limits)},
          {"datasheet", to_json(datasheet)},
          {"models", results}};
}

}  // namespace mirabelle
