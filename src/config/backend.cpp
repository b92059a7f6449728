#include "mirabelle/config/backend.h"

#include <unistd.h>

#include "mirabelle/core/table.h"
#include "mirabelle/kernels/instruction_set.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle {
namespace {

/// The ranks of this rank's machine: how many, and which of them this one is.
struct LocalRanks {
  int rank = 0, size = 0;
};

LocalRanks local_ranks(const Communicator& world) {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  const std::vector<std::string> hosts = all_gather_texts(world, name);
  LocalRanks local;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (hosts[rank] != hosts[world.rank()]) continue;
    local.rank += rank < world.rank();
    ++local.size;
  }
  return local;
}

}  // namespace

Device choose_device(const BackendConfig& config, const Communicator& world) {
  const int local = local_ranks(world).rank;
  if (config.backend == "cpu") return Device::kCpu;
  // All ranks decide alike, or they would call different collectives from here on.
  int64_t all_have_gpus = num_cuda_devices() > 0;
  world.all_reduce(view_of(&all_have_gpus, {1}), ReduceOp::kMin, Stream());
  const char* who = world.size() == 1 ? "this machine has" : "the machine of some rank has";
  MIRABELLE_CHECK_USAGE(all_have_gpus || config.backend == "auto", "backend cuda is wanted, but ",
                        who, " no GPU that this build can use; backend=cpu runs without");
  if (!all_have_gpus) return Device::kCpu;
  select_cuda_device(local);
  return Device::kCuda;
}

int ranks_on_device(Device device, const Communicator& world) {
  const LocalRanks local = local_ranks(world);
  if (device == Device::kCpu) return local.size;
  const int gpus = num_cuda_devices();  // ranks take turns
  return (local.size - local.rank % gpus + gpus - 1) / gpus;
}

DeviceCommunicator::DeviceCommunicator(const Communicator& world, Device device,
                                       const ParallelConfig& config, bool reproducible)
    : world_(world) {
  if (device == Device::kCpu) return;
  // 1 if some rank has to share its GPU
  int64_t shares = local_ranks(world).rank >= num_cuda_devices();
  world.all_reduce(view_of(&shares, {1}), ReduceOp::kMax, Stream());
  const bool use_nccl = config.communicator == "nccl" ||
                        (config.communicator == "auto" && world.size() > 1 && shares == 0);
  std::unique_ptr<Communicator> host = world.split(0, world.rank(), world.group_name());
  own_ = use_nccl ? make_nccl_communicator(std::move(host), reproducible ? tree_sum : TreeSum())
                  : make_staged_communicator(std::move(host));
}

std::string describe(Device device) {
  if (device == Device::kCpu) return std::string("cpu (") + cpu_instruction_set() + ")";
  const CudaDeviceFacts facts = cuda_device_facts();
  const auto gib = [](int64_t bytes) {
    return format_number(static_cast<double>(bytes) / (1 << 30), 1);
  };
  return "cuda (" + facts.name + ", " + gib(facts.free_bytes) + " of " + gib(facts.total_bytes) +
         " GiB free)";
}

}  // namespace mirabelle
