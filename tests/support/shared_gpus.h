#pragma once

#include <string>

#include "mirabelle/core/device.h"

namespace mirabelle::testing {

/// What lets a job of so many ranks run on a machine with fewer GPUs; "" if nothing is needed.
inline std::string shared_gpus(int ranks) {
  const bool must_share = num_cuda_devices() > 0 && num_cuda_devices() < ranks;
  return must_share ? " --set parallel.communicator=staged" : "";
}

}  // namespace mirabelle::testing
