#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <iostream>

#include "mirabelle/config/backend.h"
#include "mirabelle/config/command_line.h"
#include "mirabelle/core/buffer.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/core/table.h"
#include "mirabelle/kernels/adamw.h"
#include "mirabelle/kernels/attention.h"
#include "mirabelle/kernels/cross_entropy.h"
#include "mirabelle/kernels/embedding.h"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/kernels/rms_norm.h"
#include "mirabelle/kernels/rotary_embedding.h"
#include "mirabelle/kernels/swiglu.h"

namespace {

using namespace mirabelle;
using nlohmann::json;

constexpr const char* kSummary =
    "Times every kernel of a training step beside its roofline: the bytes that it must move over "
    "the "
    "bandwidth of a copy, or its floating-point operations over the rate of a large matrix "
    "product, "
    "both measured in the same run. Causal attention counts as half; there is no padding.";
constexpr const char* kExamples =
    "mirabelle-bench --set backend=cpu\n"
    "mirabelle-bench --set backend=cuda --dtype bfloat16 --tokens 16384 --hidden 2048 --json "
    "b.json";

/// What is measured: shapes of one training step.
struct Shapes {
  int64_t tokens = 2048, sequence = 256, hidden = 256, heads = 4, ffn = 704, vocab = 1152;
  std::string dtype = "float32";

  int64_t head_dim() const { return hidden / heads; }
  DType type() const { return dtype == "bfloat16" ? DType::kBFloat16 : DType::kFloat32; }

  void check() const {
    MIRABELLE_CHECK_USAGE(dtype == "float32" || dtype == "bfloat16",
                          "--dtype must be float32 or bfloat16, not '", dtype, "'");
    for (int64_t extent : {tokens, sequence, hidden, heads, ffn, vocab}) {
      MIRABELLE_CHECK_USAGE(extent > 0, "shapes must be positive, one is ", extent);
    }
    MIRABELLE_CHECK_USAGE(hidden % (2 * heads) == 0, "--hidden ", hidden,
                          " must be a multiple of twice --heads, ", heads);
    MIRABELLE_CHECK_USAGE(tokens % sequence == 0, "--tokens ", tokens,
                          " must be a multiple of --sequence, ", sequence);
  }
};

struct Measurement {
  std::string name;
  double seconds = 0, bytes = 0, flops = 0;
};

class Bench {
 public:
  Bench(const Shapes& shapes, Device device) : s_(shapes), device_(device), stream_(device) {}

  std::vector<Measurement> run() {
    limits();
    products();
    elementwise();
    norms();
    head();
    attention();
    optimizer();
    limits();
    return results_;
  }
  double bandwidth() const { return bandwidth_; }
  double product_rate() const { return product_rate_; }

 private:
  Buffer make(const Shape& shape) const { return Buffer(shape, s_.type(), device_); }
  Buffer make_wide(const Shape& shape) const { return Buffer(shape, wide(s_.type()), device_); }
  double size(int64_t elements) const {
    return static_cast<double>(elements * size_in_bytes(s_.type()));
  }
  double wide_size(int64_t elements) const {
    return static_cast<double>(elements * size_in_bytes(wide(s_.type())));
  }

  /// int32 values on the device.
  Buffer indices(const std::vector<int32_t>& values) const {
    Buffer buffer({static_cast<int64_t>(values.size())}, DType::kInt32, device_);
    copy(buffer.view(), view_of(values), stream_);
    stream_.synchronize();
    return buffer;
  }

  /// The median over rounds, each long enough for the clock.
  double time(const std::function<void()>& work) const {
    const auto seconds_of = [&](int64_t calls) {
      const auto start = std::chrono::steady_clock::now();
      for (int64_t i = 0; i < calls; ++i) work();
      stream_.synchronize();
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    seconds_of(2);  // warms up
    constexpr double kRound = 0.01;
    constexpr int kRounds = 15;
    const auto calls = static_cast<int64_t>(std::ceil(kRound / std::max(seconds_of(1), 1e-6)));
    std::vector<double> rounds;
    for (int round = 0; round < kRounds; ++round) {
      rounds.push_back(seconds_of(calls) / static_cast<double>(calls));
    }
    std::nth_element(rounds.begin(), rounds.begin() + kRounds / 2, rounds.end());
    return rounds[kRounds / 2];
  }

  void measure(const std::string& name, double bytes, double flops,
               const std::function<void()>& work) {
    results_.push_back({name, time(work), bytes, flops});
  }

  /// The two rooflines: measured first and last, of which the better counts, since machines are
  /// shared and noisy.
  void limits() {
    const int64_t bytes = device_ == Device::kCuda ? int64_t{1} << 30 : int64_t{1} << 28;
    const Buffer from(bytes, device_), to(bytes, device_);
    // On the CPU one thread cannot fill the memory's bandwidth: each copies a share.
    const int64_t shares = device_ == Device::kCuda ? 1 : omp_get_max_threads();
    const double copy_seconds = time([&] {
#pragma omp parallel for schedule(static)
      for (int64_t i = 0; i < shares; ++i) {
        const int64_t begin = i * bytes / shares, end = (i + 1) * bytes / shares;
        copy(to.view().rows(begin, end), from.view().rows(begin, end), stream_);
      }
    });
    bandwidth_ = std::max(bandwidth_, 2 * static_cast<double>(bytes) / copy_seconds);
    const int64_t n = device_ == Device::kCuda ? 8192 : 1024;
    const Buffer a = make({n, n}), b = make({n, n}), out = make({n, n});
    const double product_seconds =
        time([&] { linear_forward(out.view(), a.view(), b.view(), stream_); });
    product_rate_ =
        std::max(product_rate_, 2 * std::pow(static_cast<double>(n), 3) / product_seconds);
  }

  void product(const std::string& name, int64_t out_features, int64_t in_features) {
    const Buffer x = make({s_.tokens, in_features}), weight = make({out_features, in_features});
    const Buffer y = make({s_.tokens, out_features});
    const Buffer grad_weight = make_wide({out_features, in_features});
    const double flops = 2.0 * static_cast<double>(s_.tokens * in_features * out_features);
    measure(name + " forward", 0, flops,
            [&] { linear_forward(y.view(), x.view(), weight.view(), stream_); });
    measure(name + " backward, input", 0, flops, [&] {
      linear_backward_input(x.view(), y.view(), weight.view(), Accumulate::kNo, stream_);
    });
    measure(name + " backward, weight", 0, flops,
            [&] { linear_backward_weight(grad_weight.view(), y.view(), x.view(), stream_); });
  }

  void products() {
    product("qkv product", 3 * s_.hidden, s_.hidden);
    product("attention output product", s_.hidden, s_.hidden);
    product("gate/up product", 2 * s_.ffn, s_.hidden);
    product("down product", s_.hidden, s_.ffn);
    product("head product", s_.vocab, s_.hidden);
  }

  void elementwise() {
    const Buffer gate_up = make({s_.tokens, 1, 2, s_.ffn}), grad = make({s_.tokens, 1, 2, s_.ffn});
    const Buffer out = make({s_.tokens, s_.ffn});
    measure("SwiGLU forward", size(3 * s_.tokens * s_.ffn), 0,
            [&] { swiglu_forward(out.view(), gate_up.view(), stream_); });
    measure("SwiGLU backward", size(5 * s_.tokens * s_.ffn), 0,
            [&] { swiglu_backward(grad.view(), out.view(), gate_up.view(), stream_); });

    const Buffer qkv = make({s_.tokens, 3 * s_.heads, s_.head_dim()});
    const Buffer projected = make({s_.tokens, s_.heads, 3, s_.head_dim()});
    const Buffer table = make_wide({s_.sequence, s_.head_dim() / 2, 2});
    fill_rotary_table(table.view(), 10000, stream_);
    const Buffer positions = indices(positions_of_tokens());
    measure("QKV split + rotary embedding", size(6 * s_.tokens * s_.hidden), 0, [&] {
      split_and_rotate(qkv.view(), projected.view(), positions.view(), table.view(), stream_);
    });
  }

  void norms() {
    const int64_t n = s_.tokens * s_.hidden, chunks = num_token_chunks(s_.tokens);
    const Buffer out = make({s_.tokens, s_.hidden}), residual = make({s_.tokens, s_.hidden});
    const Buffer branch = make({s_.tokens, s_.hidden}), grad = make({s_.tokens, s_.hidden});
    const Buffer weight = make({s_.hidden}), rstd = make_wide({s_.tokens});
    const Buffer grad_weight = make_wide({s_.hidden}), workspace = make_wide({chunks, s_.hidden});
    const Buffer ids = indices(sequence_of_tokens()), positions = indices(positions_of_tokens());
    const Buffer key({1}, DType::kInt64, device_);
    for (const double rate : {0.0, 0.1}) {
      const Dropout dropout = {rate, key.view(), ids.view(), positions.view()};
      const std::string suffix = rate > 0 ? ", dropout" : "";
      measure("residual + RMSNorm forward" + suffix, size(4 * n), 0, [&] {
        residual_rms_norm_forward(out.view(), residual.view(), rstd.view(), residual.view(),
                                  branch.view(), weight.view(), 1e-6, dropout, stream_);
      });
      measure("residual + RMSNorm backward" + suffix, size(5 * n), 0, [&] {
        residual_rms_norm_backward(grad.view(), branch.view(), grad_weight.view(), out.view(),
                                   residual.view(), rstd.view(), weight.view(), dropout,
                                   workspace.view(), stream_);
      });
    }
  }

  void head() {
    std::vector<int32_t> tokens(s_.tokens);
    for (int64_t i = 0; i < s_.tokens; ++i) {
      tokens[i] = static_cast<int32_t>(i * 7919 % s_.vocab);
    }
    const Buffer ids = indices(tokens);
    const Buffer table = make({s_.vocab, s_.hidden}), x = make({s_.tokens, s_.hidden});
    const Buffer grad_table = make_wide({s_.vocab, s_.hidden});
    const double rows = size(s_.tokens * s_.hidden);
    measure("embedding forward", 2 * rows, 0,
            [&] { embedding_forward(x.view(), ids.view(), table.view(), {}, stream_); });
    measure("embedding backward", rows + 2 * wide_size(s_.vocab * s_.hidden), 0,
            [&] { embedding_backward(grad_table.view(), x.view(), ids.view(), {}, stream_); });
    const Buffer logits = make({s_.tokens, s_.vocab}), loss = make_wide({s_.tokens});
    const Buffer scale({1}, DType::kFloat64, device_);
    measure("softmax cross entropy", 2 * size(s_.tokens * s_.vocab), 0, [&] {
      softmax_cross_entropy(loss.view(), logits.view(), ids.view(), scale.view(), stream_);
    });
  }

  void attention() {
    std::vector<int32_t> ends;
    for (int64_t end = 0; end <= s_.tokens; end += s_.sequence) {
      ends.push_back(static_cast<int32_t>(end));
    }
    const Buffer offsets = indices(ends);
    const Buffer qkv = make({s_.tokens, 3 * s_.heads, s_.head_dim()});
    const Buffer grad_qkv = make({s_.tokens, 3 * s_.heads, s_.head_dim()});
    const Buffer out = make({s_.tokens, s_.hidden}), grad_out = make({s_.tokens, s_.hidden});
    const Buffer log_sum = make_wide({s_.tokens, s_.heads});
    // two products of sequence x sequence, of which the mask leaves half
    const double flops = 2.0 * static_cast<double>(s_.tokens * s_.sequence * s_.hidden);
    const double scale = 1 / std::sqrt(static_cast<double>(s_.head_dim()));
    measure("attention forward", 0, flops, [&] {
      attention_forward(out.view(), log_sum.view(), qkv.view(), offsets.view(), scale, stream_);
    });
    measure("attention backward", 0, 2.5 * flops, [&] {
      attention_backward(grad_qkv.view(), grad_out.view(), out.view(), log_sum.view(), qkv.view(),
                         offsets.view(), scale, stream_);
    });
  }

  void optimizer() {
    const int64_t n = 12 * s_.hidden * s_.hidden;
    const Buffer parameter = make({n}), exp_avg = make_wide({n}), exp_avg_sq = make_wide({n});
    const Buffer grad = make_wide({n}), squares({1}, DType::kFloat64, device_);
    const bool has_master = wide(s_.type()) != s_.type();
    const Buffer master = has_master ? make_wide({n}) : Buffer();
    const double state = wide_size(has_master ? 7 * n : 5 * n) + size(has_master ? n : 2 * n);
    measure("AdamW", state, 0, [&] {
      adamw_update(parameter.view(), has_master ? master.view() : TensorView{}, exp_avg.view(),
                   exp_avg_sq.view(), grad.view(), squares.view(), {.learning_rate = 1e-3},
                   stream_);
    });
    measure("sum of squares", wide_size(n), 0,
            [&] { sum_of_squares(squares.view(), grad.view(), stream_); });
  }

  std::vector<int32_t> positions_of_tokens() const {
    std::vector<int32_t> positions(s_.tokens);
    for (int64_t i = 0; i < s_.tokens; ++i) positions[i] = static_cast<int32_t>(i % s_.sequence);
    return positions;
  }
  std::vector<int32_t> sequence_of_tokens() const {
    std::vector<int32_t> ids(s_.tokens);
    for (int64_t i = 0; i < s_.tokens; ++i) ids[i] = static_cast<int32_t>(i / s_.sequence);
    return ids;
  }

  Shapes s_;
  Device device_;
  Stream stream_;
  double bandwidth_ = 0, product_rate_ = 0;
  std::vector<Measurement> results_;
};

int run(int argc, char** argv, const Communicator& self) {
  BackendConfig backend;
  Shapes shapes;
  CommandLine command_line("mirabelle-bench", kSummary, kExamples, {config_section("", backend)});
  CLI::App& app = command_line.app();
  app.add_option("--dtype", shapes.dtype, "float32, or (on cuda) bfloat16")->capture_default_str();
  app.add_option("--tokens", shapes.tokens, "Tokens of a batch")->capture_default_str();
  app.add_option("--sequence", shapes.sequence, "Tokens of a sequence")->capture_default_str();
  app.add_option("--hidden", shapes.hidden, "hidden_size")->capture_default_str();
  app.add_option("--heads", shapes.heads, "num_heads")->capture_default_str();
  app.add_option("--ffn", shapes.ffn, "ffn_hidden_size")->capture_default_str();
  app.add_option("--vocab", shapes.vocab, "Tokens of the vocabulary")->capture_default_str();
  if (const auto status = command_line.parse(argc, argv, self)) return *status;
  shapes.check();
  const Device device = choose_device(backend, self);
  spdlog::info("backend {}, {}", describe(device), shapes.dtype);

  Bench bench(shapes, device);
  const std::vector<Measurement> measurements = bench.run();
  Table table({"kernel", "us", "GB/s", "GFLOP/s", "of the roofline"});
  json kernels = json::array();
  for (const Measurement& m : measurements) {
    const double share = m.bytes > 0 ? m.bytes / m.seconds / bench.bandwidth()
                                     : m.flops / m.seconds / bench.product_rate();
    table.add_row({m.name, format_number(m.seconds * 1e6, 1),
                   m.bytes > 0 ? format_number(m.bytes / m.seconds / 1e9, 1) : "-",
                   m.flops > 0 ? format_number(m.flops / m.seconds / 1e9, 1) : "-",
                   format_number(100 * share, 1) + " %"});
    kernels.push_back({{"name", m.name},
                       {"seconds", m.seconds},
                       {"bytes", m.bytes},
                       {"flops", m.flops},
                       {"fraction_of_roofline", share}});
  }
  table.print(std::cout);
  std::cout << "\nmeasured limits: copies " << format_number(bench.bandwidth() / 1e9, 1)
            << " GB/s (read and written bytes), matrix products "
            << format_number(bench.product_rate() / 1e9, 1) << " GFLOP/s\n";
  command_line.write_result({{"device", describe(device)},
                             {"dtype", shapes.dtype},
                             {"tokens", shapes.tokens},
                             {"sequence", shapes.sequence},
                             {"hidden_size", shapes.hidden},
                             {"num_heads", shapes.heads},
                             {"ffn_hidden_size", shapes.ffn},
                             {"vocab_size", shapes.vocab},
                             {"copy_bytes_per_second", bench.bandwidth()},
                             {"product_flops_per_second", bench.product_rate()},
                             {"kernels", kernels},
                             {"version", MIRABELLE_VERSION}});
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return mirabelle::run_serial_main("mirabelle-bench", [&](const mirabelle::Communicator& self) {
    return run(argc, argv, self);
  });
}
