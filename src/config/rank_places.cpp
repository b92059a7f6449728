#include "mirabelle/config/rank_places.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

using nlohmann::json;

/// The first line, or nothing.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<int> own_cores() {
  std::vector<int> cores;
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return cores;  // more cores than the set holds
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

GpuPlace own_gpu() {
  const CudaDeviceFacts facts = cuda_device_facts();
  const std::string folder = "/sys/bus/pci/devices/" + facts.pci_address;
  GpuPlace gpu{facts.index, facts.name, facts.uuid, {}};
  // Without NUMA nodes every core is as near as any other.
  const std::string node = first_line(folder + "/numa_node");
  if (!node.empty() && node != "-1") {
    gpu.near_cores = numbers_of_ranges(first_line(folder + "/local_cpulist"));
  }
  return gpu;
}

json to_json(const RankPlace& place) {
  json object = {{"host", place.host},
                 {"machine", place.machine},
                 {"cores", place.cores},
                 {"threads", place.threads}};
  if (place.gpu) {
    object["gpu"] = {{"index", place.gpu->index},
                     {"name", place.gpu->name},
                     {"uuid", place.gpu->uuid},
                     {"near_cores", place.gpu->near_cores}};
  }
  return object;
}

RankPlace place_from_json(const json& object) {
  RankPlace place{object["host"], object["machine"], object["cores"], object["threads"], {}};
  if (object.contains("gpu")) {
    const json& gpu = object["gpu"];
    place.gpu = {gpu["index"], gpu["name"], gpu["uuid"], gpu["near_cores"]};
  }
  return place;
}

/// Ranks by machine, in the order of the first of each.
std::vector<std::vector<int>> ranks_by_machine(const std::vector<RankPlace>& places) {
  std::vector<std::vector<int>> groups;
  std::map<std::string, size_t> group_of;
  for (size_t rank = 0; rank < places.size(); ++rank) {
    const auto [found, is_new] = group_of.try_emplace(places[rank].machine, groups.size());
    if (is_new) groups.emplace_back();
    groups[found->second].push_back(static_cast<int>(rank));
  }
  return groups;
}

std::vector<int> distinct(std::vector<int> numbers) {
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

/// A row of the table for ranks of one machine.
std::vector<std::string> table_row(const std::vector<RankPlace>& places,
                                   const std::vector<int>& ranks) {
  const RankPlace& first = places[ranks.front()];
  std::vector<int> cores, gpus;
  for (const int rank : ranks) {
    const RankPlace& place = places[rank];
    cores.insert(cores.end(), place.cores.begin(), place.cores.end());
    if (place.gpu) gpus.push_back(static_cast<int>(place.gpu->index));
  }
  const std::string gpu =
      first.gpu ? ranges_text(distinct(gpus)) + " " + first.gpu->name : std::string("-");
  return {ranges_text(ranks), first.host, gpu, ranges_text(distinct(cores)),
          std::to_string(first.threads)};
}

/// Whether the ranks of a machine have more threads than it gives them cores.
std::string crowded_cores(const std::vector<RankPlace>& places, const std::vector<int>& ranks) {
  std::vector<int> cores;
  int64_t threads = 0, most = 1;
  for (const int rank : ranks) {
    cores.insert(cores.end(), places[rank].cores.begin(), places[rank].cores.end());
    threads += places[rank].threads;
    most = std::max(most, places[rank].threads);
  }
  const size_t num_cores = distinct(cores).size();
  // One thread each is all that ranks can do about it.
  if (most == 1 || threads <= static_cast<int64_t>(num_cores)) return "";
  return places[ranks.front()].host + ": " + std::to_string(ranks.size()) + " ranks have " +
         std::to_string(threads) + " threads on " + std::to_string(num_cores) +
         " cores; a lower OMP_NUM_THREADS, or launch/mpirun.sh, which sets it, is faster";
}

}  // namespace

std::string host_name() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

RankPlace this_place(Device device) {
  // Machines may have the same name, and several named hosts may share a kernel.
  RankPlace place{host_name(),
                  host_name() + " " + first_line("/proc/sys/kernel/random/boot_id"),
                  own_cores(),
                  omp_get_max_threads(),
                  {}};
  if (device == Device::kCuda) place.gpu = own_gpu();
  return place;
}

std::vector<RankPlace> all_places(const RankPlace& own, const Communicator& world) {
  std::vector<RankPlace> places;
  for (const std::string& text : all_gather_texts(world, to_json(own).dump())) {
    places.push_back(place_from_json(json::parse(text)));
  }
  return places;
}

int64_t local_rank(const std::vector<RankPlace>& places, int64_t rank) {
  return std::count_if(places.begin(), places.begin() + rank, [&](const RankPlace& place) {
    return place.machine == places[rank].machine;
  });
}

int64_t num_sharing(const std::vector<RankPlace>& places, int64_t rank) {
  const RankPlace& own = places[rank];
  return std::count_if(places.begin(), places.end(), [&](const RankPlace& place) {
    if (own.gpu) return place.gpu && place.gpu->uuid == own.gpu->uuid;
    return place.machine == own.machine;
  });
}

std::string gpu_sharing(const std::vector<RankPlace>& places) {
  for (const std::vector<int>& ranks : ranks_by_machine(places)) {
    std::set<std::string> gpus;
    for (const int rank : ranks) {
      if (places[rank].gpu) gpus.insert(places[rank].gpu->uuid);
    }
    if (gpus.empty() || gpus.size() == ranks.size()) continue;
    return places[ranks.front()].host + " has " + std::to_string(ranks.size()) + " ranks on " +
           std::to_string(gpus.size()) + (gpus.size() == 1 ? " GPU" : " GPUs");
  }
  return "";
}

Table rank_table(const std::vector<RankPlace>& places) {
  constexpr size_t kMostRows = 16;
  std::vector<std::vector<int>> groups;
  if (places.size() > kMostRows) {
    groups = ranks_by_machine(places);
  } else {
    for (size_t rank = 0; rank < places.size(); ++rank) groups.push_back({static_cast<int>(rank)});
  }
  Table table({"rank", "host", "GPU", "cores", "threads"});
  for (const std::vector<int>& ranks : groups) table.add_row(table_row(places, ranks));
  return table;
}

std::vector<std::string> slow_places(const std::vector<RankPlace>& places,
                                     int64_t tensor_parallel_size) {
  std::vector<std::string> warnings;
  for (const std::vector<int>& ranks : ranks_by_machine(places)) {
    const std::string crowded = crowded_cores(places, ranks);
    if (!crowded.empty()) warnings.push_back(crowded);
  }
  for (size_t rank = 0; rank < places.size(); ++rank) {
    if (!places[rank].gpu || places[rank].gpu->near_cores.empty()) continue;
    const std::vector<int>& near = places[rank].gpu->near_cores;
    const std::vector<int>& cores = places[rank].cores;
    if (std::find_first_of(cores.begin(), cores.end(), near.begin(), near.end()) != cores.end()) {
      continue;
    }
    warnings.push_back("rank " + std::to_string(rank) + " on " + places[rank].host +
                       ": its cores " + ranges_text(cores) +
                       " are far from its GPU, which is near " + ranges_text(near));
  }
  for (size_t rank = 0; rank < places.size(); ++rank) {
    const size_t first = rank - rank % tensor_parallel_size;
    if (places[rank].machine == places[first].machine) continue;
    warnings.push_back("ranks " + std::to_string(first) + " and " + std::to_string(rank) +
                       " share one copy of the model (parallel.tensor_parallel_size) from two "
                       "hosts, " +
                       places[first].host + " and " + places[rank].host +
                       "; groups within a host are faster");
    break;
  }
  return warnings;
}

std::string ranges_text(const std::vector<int>& numbers) {
  std::string text;
  for (size_t begin = 0, end; begin < numbers.size(); begin = end) {
    for (end = begin + 1; end < numbers.size() && numbers[end] == numbers[end - 1] + 1;) ++end;
    text += (text.empty() ? "" : ",") + std::to_string(numbers[begin]);
    if (end - begin > 1) text += "-" + std::to_string(numbers[end - 1]);
  }
  return text;
}

std::vector<int> numbers_of_ranges(const std::string& text) {
  std::vector<int> numbers;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto read = [&] {
    int number = 0;
    const auto [next, error] = std::from_chars(at, end, number);
    MIRABELLE_CHECK(error == std::errc() && number >= 0, "'", text, "': not ranges like 0-3,8");
    at = next;
    return number;
  };
  while (at < end) {
    const int first = read();
    int last = first;
    if (at < end && *at == '-') last = (++at, read());
    for (int number = first; number <= last; ++number) numbers.push_back(number);
    MIRABELLE_CHECK(at == end || *at == ',', "'", text, "': not ranges like 0-3,8");
    if (at < end) ++at;
  }
  return numbers;
}

}  // namespace mirabelle
