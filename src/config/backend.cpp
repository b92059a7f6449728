#include "mirabelle/config/backend.h"

#include <algorithm>

#include "mirabelle/config/rank_places.h"
#include "mirabelle/core/table.h"
#include "mirabelle/kernels/instruction_set.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle {
namespace {

/// "this machine", or "rank 3 on node1".
std::string who(const std::vector<RankPlace>& places, int64_t rank) {
  if (places.size() == 1) return "this machine";
  return "rank " + std::to_string(rank) + " on " + places[rank].host;
}

}  // namespace

Device choose_device(const BackendConfig& config, const Communicator& world) {
  if (config.backend == "cpu") return Device::kCpu;
  // All ranks decide alike, or they would call different collectives from here on.
  const std::vector<RankPlace> places = all_places(this_place(Device::kCpu), world);
  int64_t own = num_cuda_devices() > 0;
  std::vector<int64_t> has_gpu(world.size());
  world.all_gather(view_of(has_gpu), view_of(&own, {1}), Stream());
  const auto first = [&](int64_t value) {
    return std::find(has_gpu.begin(), has_gpu.end(), value) - has_gpu.begin();
  };
  const int64_t with = first(1), without = first(0);
  if (without == world.size()) {
    select_cuda_device(static_cast<int>(local_rank(places, world.rank())));
    return Device::kCuda;
  }
  MIRABELLE_CHECK_USAGE(config.backend == "auto", "backend cuda is wanted, but ",
                        who(places, without), " has no GPU that this build can use; ",
                        "backend=cpu runs without");
  MIRABELLE_CHECK_USAGE(with == world.size(), who(places, without),
                        " has no GPU that this build can use, but ", who(places, with),
                        " has; backend=cpu lets no rank use one");
  return Device::kCpu;
}

int ranks_on_device(Device device, const Communicator& world) {
  return static_cast<int>(num_sharing(all_places(this_place(device), world), world.rank()));
}

DeviceCommunicator::DeviceCommunicator(const Communicator& world, Device device,
                                       const ParallelConfig& config, bool reproducible)
    : world_(world) {
  if (device == Device::kCpu) return;
  const std::string sharing = gpu_sharing(all_places(this_place(device), world));
  MIRABELLE_CHECK_USAGE(sharing.empty() || config.communicator != "auto", sharing,
                        "; start one for each GPU, or set parallel.communicator=staged, which "
                        "lets them share, slowly");
  const bool use_nccl =
      config.communicator == "nccl" || (config.communicator == "auto" && world.size() > 1);
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
