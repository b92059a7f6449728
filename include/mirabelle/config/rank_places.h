#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/device.h"
#include "mirabelle/core/table.h"

namespace mirabelle {

/// The machine's name, as messages give it.
std::string host_name();

/// A GPU as a process sees it.
struct GpuPlace {
  int64_t index = 0;  ///< among those that the process may use
  std::string name;
  std::string uuid;             ///< the same for all who share it, whatever they call it
  std::vector<int> near_cores;  ///< of its NUMA node; empty if the system does not say
};

/// Where a rank runs.
struct RankPlace {
  std::string host;
  std::string machine;     ///< the same for all ranks of a running machine, and for no others
  std::vector<int> cores;  ///< that the rank may use
  int64_t threads = 1;
  std::optional<GpuPlace> gpu;
};

/// Of this process; with Device::kCuda of the chosen GPU.
RankPlace this_place(Device device);
/// In rank order, on every rank. Collective.
std::vector<RankPlace> all_places(const RankPlace& own, const Communicator& world);

/// How many ranks before this one run on its machine.
int64_t local_rank(const std::vector<RankPlace>& places, int64_t rank);
/// How many ranks use what this one computes on: its GPU, or its machine.
int64_t num_sharing(const std::vector<RankPlace>& places, int64_t rank);
/// What is wrong if a GPU has several ranks: "node1 has 4 ranks on 2 GPUs"; else nothing.
std::string gpu_sharing(const std::vector<RankPlace>& places);

/// A row for each rank; of more than 16 a row for each host.
Table rank_table(const std::vector<RankPlace>& places);
/// What makes a job slow: more threads than cores, cores far from the GPU, tensor-parallel groups
/// (of neighbouring ranks) on several hosts.
std::vector<std::string> slow_places(const std::vector<RankPlace>& places,
                                     int64_t tensor_parallel_size);

/// Of numbers in order: "0-3,8". And back; throws an Error if `text` is anything else.
std::string ranges_text(const std::vector<int>& numbers);
std::vector<int> numbers_of_ranges(const std::string& text);

}  // namespace mirabelle
