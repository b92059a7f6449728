#pragma once

#include <nlohmann/json.hpp>

#include "bench/timing.h"

namespace mirabelle {

struct BeamSearchBenchOptions {
  int64_t users = 16, beams = 200;
  int64_t history_items = 512;
  int64_t levels = 4, level_size = 256, items = 100000;
  int64_t hidden = 1024, layers = 8, heads = 8, kv_heads = 8, ffn = 2816;
  DType dtype = DType::kFloat32;

  /// Throws a kUsage Error that names the option.
  void check() const;
};

/// Times the trie-constrained beam search of one batch of users, histories in, ranked items out.
nlohmann::json bench_beam_search(const BeamSearchBenchOptions& options, Device device);

}  // namespace mirabelle
