#pragma once

#include <string>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/comm/parallel_config.h"
#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/device.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

/// The keys of the configuration that stand outside every section.
struct BackendConfig {
  std::string backend = "auto";

  void visit(ConfigFields& fields) {
    fields.field("backend", backend, "cpu, cuda, or auto: cuda where a GPU is present");
  }
  void check() const {
    MIRABELLE_CHECK_USAGE(backend == "auto" || backend == "cpu" || backend == "cuda",
                          "backend must be auto, cpu or cuda, not '", backend, "'");
  }
};

/// The device that all ranks work on: with auto, GPUs if every rank can use one, the CPU if none
/// can. A rank takes the GPU of its number among the ranks of its machine, or the only one that the
/// launcher lets it see. Throws a kUsage Error if cuda is asked for and some rank has no GPU, or
/// with auto if only some have. Collective.
Device choose_device(const BackendConfig& config, const Communicator& world);

/// How many ranks have the device of this rank: all of its machine, or those on the same GPU.
/// Collective.
int ranks_on_device(Device device, const Communicator& world);

/// What moves tensors of this device between the ranks: `world` itself, or for a GPU a communicator
/// that can reach its memory, as parallel.communicator says; `reproducible`: sums of floating
/// numbers are the same bits over every transport. Throws a kUsage Error if ranks share a GPU and
/// parallel.communicator is `auto`. Collective.
class DeviceCommunicator {
 public:
  DeviceCommunicator(const Communicator& world, Device device, const ParallelConfig& config,
                     bool reproducible);
  const Communicator& get() const { return own_ ? *own_ : world_; }

 private:
  const Communicator& world_;
  std::unique_ptr<Communicator> own_;
};

/// "cpu (AVX-512)" or "cuda (NVIDIA H100 80GB HBM3, 79.2 of 79.6 GiB free)", for the log.
std::string describe(Device device);

}  // namespace mirabelle
