#include "bench/kernels.h"

#include <cmath>
#include <iostream>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/copy.h"
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

namespace mirabelle {
namespace {

using nlohmann::json;

struct Measurement {
  std::string name;
  double seconds = 0, bytes = 0, flops = 0;
};

class KernelBench {
 public:
  KernelBench(const KernelShapes& shapes, Device device)
      : s_(shapes), device_(device), stream_(device, shapes.reproducible) {}

  std::vector<Measurement> run() {
    products();
    elementwise();
    norms();
    head();
    attention();
    optimizer();
    return results_;
  }

 private:
  Buffer make(const Shape& shape) const { return Buffer(shape, s_.dtype, device_); }
  Buffer make_wide(const Shape& shape) const { return Buffer(shape, wide(s_.dtype), device_); }
  double size(int64_t elements) const {
    return static_cast<double>(elements * size_in_bytes(s_.dtype));
  }
  double wide_size(int64_t elements) const {
    return static_cast<double>(elements * size_in_bytes(wide(s_.dtype)));
  }

  /// int32 values on the device.
  Buffer indices(const std::vector<int32_t>& values) const {
    Buffer buffer({static_cast<int64_t>(values.size())}, DType::kInt32, device_);
    copy(buffer.view(), view_of(values), stream_);
    stream_.synchronize();
    return buffer;
  }

  void measure(const std::string& name, double bytes, double flops,
               const std::function<void()>& work) {
    results_.push_back({name, median_seconds(work, stream_), bytes, flops});
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
    fill_rotary_table(table.view(), rotary_frequencies(s_.head_dim(), 10000), 1, stream_);
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
            [&] { embedding_forward(x.view(), ids.view(), table.view(), 0, {}, stream_); });
    measure("embedding backward", rows + 2 * wide_size(s_.vocab * s_.hidden), 0,
            [&] { embedding_backward(grad_table.view(), x.view(), ids.view(), 0, {}, stream_); });
    const Buffer logits = make({s_.tokens, s_.vocab}), loss = make_wide({s_.tokens});
    const Buffer scale({1}, DType::kFloat64, device_);
    measure("softmax cross entropy", 2 * size(s_.tokens * s_.vocab), 0, [&] {
      softmax_cross_entropy(loss.view(), logits.view(), ids.view(), scale.view(), {}, stream_);
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
      attention_forward(out.view(), log_sum.view(), qkv.view(), offsets.view(), s_.sequence, scale,
                        stream_);
    });
    measure("attention backward", 0, 2.5 * flops, [&] {
      attention_backward(grad_qkv.view(), grad_out.view(), out.view(), log_sum.view(), qkv.view(),
                         offsets.view(), s_.sequence, scale, stream_);
    });
  }

  void optimizer() {
    const int64_t n = 12 * s_.hidden * s_.hidden;
    const Buffer parameter = make({n}), exp_avg = make_wide({n}), exp_avg_sq = make_wide({n});
    const Buffer grad = make_wide({n}), squares({1}, DType::kFloat64, device_);
    const bool has_master = wide(s_.dtype) != s_.dtype;
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

  KernelShapes s_;
  Device device_;
  Stream stream_;
  std::vector<Measurement> results_;
};

}  // namespace

json bench_kernels(const KernelShapes& shapes, Device device) {
  MachineLimits limits = measure_limits(device, shapes.dtype);
  const std::vector<Measurement> measurements = KernelBench(shapes, device).run();
  limits = better(limits, measure_limits(device, shapes.dtype));
  const MachineLimits datasheet = datasheet_limits(device, shapes.dtype);
  Table table({"kernel", "us", "GB/s", "GFLOP/s", "of the roofline", "of the datasheet"});
  json kernels = json::array();
  for (const Measurement& m : measurements) {
    const auto limit =
        m.bytes > 0 ? &MachineLimits::bytes_per_second : &MachineLimits::flops_per_second;
    const double rate = (m.bytes > 0 ? m.bytes : m.flops) / m.seconds;
    table.add_row({m.name, format_number(m.seconds * 1e6, 1),
                   m.bytes > 0 ? format_number(m.bytes / m.seconds / 1e9, 1) : "-",
                   m.flops > 0 ? format_number(m.flops / m.seconds / 1e9, 1) : "-",
                   format_share(rate, limits.*limit), format_share(rate, datasheet.*limit)});
    kernels.push_back({{"name", m.name},
                       {"seconds", m.seconds},
                       {"bytes", m.bytes},
                       {"flops", m.flops},
                       {"fraction_of_roofline", rate / limits.*limit}});
  }
  table.print(std::cout);
  std::cout << '\n' << describe(limits, datasheet) << '\n';
  return {{"tokens", shapes.tokens},
          {"sequence", shapes.sequence},
          {"hidden_size", shapes.hidden},
          {"num_heads", shapes.heads},
          {"ffn_hidden_size", shapes.ffn},
          {"vocab_size", shapes.vocab},
          {"limits", to_json(limits)},
          {"datasheet", to_json(datasheet)},
          {"kernels", kernels}};
}

}  // namespace mirabelle
