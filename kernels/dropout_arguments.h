#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mirabelle/kernels/dropout.h"

namespace mirabelle::backend {

/// Dropout as the backends take it. threshold = 0 means no dropout, and the arrays are not read.
struct DropoutArguments {
  const int64_t* key = nullptr;
  uint32_t threshold = 0;  ///< of 65536: an element whose 16 bits are below it is dropped
  double scale = 1;        ///< of the elements that live
  const int32_t* sequence_ids = nullptr;
  const int32_t* positions = nullptr;
};

/// Checks rate and coordinates.
inline DropoutArguments dropout_arguments(const Dropout& dropout, int64_t num_tokens,
                                          Device device) {
  MIRABELLE_CHECK(dropout.rate >= 0 && dropout.rate < 1, "a dropout rate is in [0, 1), not ",
                  dropout.rate);
  if (dropout.rate == 0) return {};
  for (const TensorView* coordinate : {&dropout.sequence_ids, &dropout.positions}) {
    MIRABELLE_CHECK(coordinate->shape == Shape{num_tokens} && coordinate->device == device,
                    "dropout needs the sequence ID and position of ", num_tokens, " tokens on ",
                    to_string(device), ", got ", coordinate->shape, " on ",
                    to_string(coordinate->device));
  }
  MIRABELLE_CHECK(dropout.key.shape == Shape{1} && dropout.key.device == device,
                  "dropout needs a key of shape [1] on ", to_string(device), ", got ",
                  dropout.key.shape, " on ", to_string(dropout.key.device));
  const double threshold = std::min(65535.0, std::round(dropout.rate * 65536));
  return {dropout.key.as<int64_t>(), static_cast<uint32_t>(threshold), 1 / (1 - threshold / 65536),
          dropout.sequence_ids.as<int32_t>(), dropout.positions.as<int32_t>()};
}

}  // namespace mirabelle::backend
