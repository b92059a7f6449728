#pragma once

#include <nlohmann/json.hpp>

#include "bench/timing.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

/// What is measured: shapes of one training step.
struct KernelShapes {
  int64_t tokens = 2048, sequence = 256, hidden = 256, heads = 4, ffn = 704, vocab = 1152;
  DType dtype = DType::kFloat32;
  bool reproducible = false;

  int64_t head_dim() const { return hidden / heads; }

  /// Throws a kUsage Error that names the option.
  void check() const {
    for (int64_t extent : {tokens, sequence, hidden, heads, ffn, vocab}) {
      MIRABELLE_CHECK_USAGE(extent > 0, "shapes must be positive, one is ", extent);
    }
    MIRABELLE_CHECK_USAGE(hidden % (2 * heads) == 0, "--hidden ", hidden,
                          " must be a multiple of twice --heads, ", heads);
    MIRABELLE_CHECK_USAGE(tokens % sequence == 0, "--tokens ", tokens,
                          " must be a multiple of --sequence, ", sequence);
  }
};

/// Times every kernel of a training step beside its roofline, prints a table and returns the
/// figures.
nlohmann::json bench_kernels(const KernelShapes& shapes, Device device);

}  // namespace mirabelle
