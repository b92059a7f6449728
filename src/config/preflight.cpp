#include "mirabelle/config/preflight.h"

#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "mirabelle/config/rank_places.h"
#include "mirabelle/core/activity.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/core/memory_plan.h"
#include "mirabelle/kernels/instruction_set.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Facts = std::map<std::string, std::string>;

/// "rank 3 on node1"
std::string rank_on_host(int64_t rank, const std::string& host) {
  return "rank " + std::to_string(rank) + " on " + host;
}

/// Throws on all ranks what the first that complains has to say. Collective.
void refuse_together(const Communicator& world, const std::string& complaint) {
  const std::string own =
      complaint.empty() ? "" : rank_on_host(world.rank(), host_name()) + " " + complaint;
  for (const std::string& text : all_gather_texts(world, own)) {
    if (!text.empty()) throw_error(ErrorKind::kUsage, text);
  }
}

/// The shared libraries of ours that are loaded, by file name.
std::map<std::string, std::string> own_libraries() {
  std::map<std::string, std::string> paths;
  const auto add = [](dl_phdr_info* info, size_t, void* to) {
    const fs::path path = info->dlpi_name;
    if (path.filename().string().starts_with("libmirabelle_")) {
      (*static_cast<std::map<std::string, std::string>*>(to))[path.filename()] = path;
    }
    return 0;
  };
  ::dl_iterate_phdr(add, &paths);
  return paths;
}

std::string identity(const fs::path& file) { return sha256_of_file(file).substr(0, 12); }

/// What to do about a fact that differs.
std::string remedy(const std::string& fact) {
  if (fact == "MPI" || fact == "NCCL" || fact == "CUDA driver") {
    return "install the same " + fact + " on every host";
  }
  return "install the same build on every host";
}

struct Bandwidth {
  double bytes_per_second;
  bool is_right;  ///< the sum
};

/// Of an all-reduce of 4 MiB, the second of two: bytes that a rank sends in a ring, per second.
Bandwidth measure(const Communicator& group, Device device) {
  constexpr int64_t kElements = 1 << 20;
  const Stream stream(device);
  const Buffer x({kElements}, DType::kFloat32, device), host({kElements}, DType::kFloat32);
  auto* const values = static_cast<float*>(host.data());
  double seconds = 0;
  bool is_right = true;
  for (int round = 0; round < 2; ++round) {
    std::fill_n(values, kElements, static_cast<float>(group.rank() + 1));
    copy(x.view(), host.view(), stream);
    group.synchronize(stream);
    group.barrier();
    const auto start = std::chrono::steady_clock::now();
    group.all_reduce(x.view(), ReduceOp::kSum, stream);
    group.synchronize(stream);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    copy(host.view(), x.view(), stream);
    group.synchronize(stream);
    const int64_t sum = int64_t{group.size()} * (group.size() + 1) / 2;
    is_right = is_right && std::all_of(values, values + kElements, [&](float value) {
                 return value == static_cast<float>(sum);
               });
  }
  const double bytes = 2.0 * static_cast<double>(x.bytes()) * (group.size() - 1) / group.size();
  return {bytes / seconds, is_right};
}

/// Measures every group of this kind, all at once. Returns "tensor-parallel (4) 0.81 GB/s", of the
/// slowest group. Collective over `world`.
std::string check_group(const Communicator& group, Device device, const Communicator& world) {
  const Activity activity("preflight");
  const Bandwidth bandwidth = measure(group, device);
  refuse_together(world, bandwidth.is_right
                             ? ""
                             : "got a wrong sum in an all-reduce of its " + group.group_name() +
                                   " group: its memory, its network or its driver is broken; "
                                   "leave this host out");
  double slowest = bandwidth.bytes_per_second;
  // On the host, whatever `world` works on: all ranks know the bits then.
  for (const std::string& text : all_gather_texts(world, json(slowest).dump())) {
    slowest = std::min(slowest, json::parse(text).get<double>());
  }
  return group.group_name() + " (" + std::to_string(group.size()) + ") " +
         format_number(slowest / 1e9, 2) + " GB/s";
}

void log_places(const std::vector<RankPlace>& places, int64_t tensor_parallel_size) {
  std::ostringstream table;
  table << '\n';
  rank_table(places).print(table);
  std::string text = table.str();
  text.pop_back();  // the last end of a line, which the log writes
  spdlog::info("preflight: {}{}{}{}{}", mpi_version(),
               nccl_version().empty() ? "" : ", NCCL " + nccl_version(),
               cuda_driver_version().empty() ? "" : ", driver for CUDA " + cuda_driver_version(),
               ", the same program and configuration on all ranks", text);
  for (const std::string& warning : slow_places(places, tensor_parallel_size)) {
    spdlog::warn("{}", warning);
  }
}

/// What keeps this rank from writing the file, or nothing.
std::string write_complaint(const fs::path& file, const std::string& text) {
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  if (error) return file.parent_path().string() + ": cannot create: " + error.message();
  errno = 0;
  std::ofstream stream(file);
  stream << text << std::flush;
  if (stream) return "";
  return file.string() + ": cannot write: " + std::strerror(errno);
}

/// Network file systems may show a new file late.
bool comes_to_be(const fs::path& file, const std::string& text) {
  for (int tries = 0; tries < 20; ++tries) {
    std::string line;
    if (std::getline(std::ifstream(file), line) && line == text) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return false;
}

/// Every rank writes a file, and looks for rank 0's.
void check_shared_folder(const Communicator& world, const fs::path& folder) {
  const auto file_of = [&](int rank) {
    return folder / (".preflight-" + std::to_string(rank) + ".partial");
  };
  const fs::path own = file_of(world.rank());
  // Not what an earlier job may have left.
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  const std::string text = broadcast_text(world, std::to_string(now), 0);
  const std::string complaint = write_complaint(own, text);
  const std::vector<std::string> complaints = all_gather_texts(world, complaint);
  const bool is_seen = !complaints.front().empty() || comes_to_be(file_of(0), text);
  world.barrier();  // until all have looked
  std::error_code ignored;
  fs::remove(own, ignored);
  refuse_together(world, complaint.empty() ? "" : "cannot use training.output: " + complaint);
  refuse_together(world, is_seen ? ""
                                 : "does not see what rank 0 writes to training.output, " +
                                       folder.string() +
                                       "; it must be on a file system that all hosts share");
}

}  // namespace

std::map<std::string, std::string> program_facts() {
  Facts facts = {{"program", identity("/proc/self/exe")}, {"MPI", mpi_version()}};
  for (const auto& [name, path] : own_libraries()) {
    const bool is_of_cpu = name.find("cpu_kernels") != std::string::npos;
    facts[is_of_cpu ? name + " for " + cpu_instruction_set() : name] = identity(path);
  }
  if (!nccl_version().empty()) facts["NCCL"] = nccl_version();
  if (!cuda_driver_version().empty()) facts["CUDA driver"] = cuda_driver_version();
  return facts;
}

std::optional<std::string> difference(const std::vector<Facts>& facts,
                                      const std::vector<std::string>& hosts) {
  std::map<std::string, size_t> first;  // rank that has the fact
  for (size_t rank = 0; rank < facts.size(); ++rank) {
    for (const auto& [name, value] : facts[rank]) {
      const size_t other = first.try_emplace(name, rank).first->second;
      const std::string& wanted = facts[other].at(name);
      if (value == wanted) continue;
      return rank_on_host(rank, hosts[rank]) + " has another " + name + " (" + value + ") than " +
             rank_on_host(other, hosts[other]) + " (" + wanted + "); " + remedy(name);
    }
  }
  return std::nullopt;
}

void check_same_program(const Communicator& world) {
  const Activity activity("preflight");
  std::vector<Facts> facts;
  for (const std::string& text : all_gather_texts(world, json(program_facts()).dump())) {
    facts.push_back(json::parse(text).get<Facts>());
  }
  const std::optional<std::string> found = difference(facts, all_gather_texts(world, host_name()));
  if (found) throw_error(ErrorKind::kUsage, *found);
  std::set<std::string> names;
  for (const Facts& of_rank : facts) {
    for (const auto& [name, value] : of_rank) names.insert(name);
  }
  if (world.rank() == 0 && names.size() > facts.front().size()) {
    spdlog::warn(
        "the hosts are not alike: some ranks have other CPU instructions or no GPU driver; "
        "results may differ in their last bits from host to host");
  }
}

void check_same_configuration(const Communicator& world, const std::string& yaml) {
  if (world.size() == 1) return;
  std::istringstream own(yaml), wanted(broadcast_text(world, yaml, 0));
  std::string complaint, own_line, wanted_line;
  while (complaint.empty()) {
    const bool has_own = static_cast<bool>(std::getline(own, own_line));
    const bool is_wanted = static_cast<bool>(std::getline(wanted, wanted_line));
    if (!has_own && !is_wanted) break;
    if (has_own && is_wanted && own_line == wanted_line) continue;
    const auto trimmed = [](const std::string& line) {
      return line.substr(std::min(line.find_first_not_of(' '), line.size()));
    };
    complaint = "has another configuration than rank 0: '" + trimmed(own_line) + "', there '" +
                trimmed(wanted_line) + "'; copy the same file to every host";
  }
  refuse_together(world, complaint);
}

ParallelContext checked_groups(const Communicator& world, int64_t tensor_parallel_size,
                               Device device) {
  ParallelContext ranks(world, tensor_parallel_size);
  if (world.size() == 1) return ranks;
  const std::vector<RankPlace> places = all_places(this_place(device), world);
  if (world.rank() == 0) log_places(places, tensor_parallel_size);
  std::string bandwidths = check_group(world, device, world);
  if (ranks.tensor().size() > 1 && ranks.data().size() > 1) {
    bandwidths += ", " + check_group(ranks.tensor(), device, world) + ", " +
                  check_group(ranks.data(), device, world);
  }
  if (world.rank() == 0) spdlog::info("all-reduce of 4 MiB: {}", bandwidths);
  return ranks;
}

void check_checkpoint_room(const Communicator& world, const fs::path& folder,
                           int64_t num_checkpoints, int64_t checkpoint_bytes) {
  check_shared_folder(world, folder);
  std::string complaint;
  const int64_t wanted = num_checkpoints * checkpoint_bytes;
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (world.rank() == 0 && !error && static_cast<int64_t>(space.available) < wanted) {
    complaint = "has " + format_bytes(static_cast<int64_t>(space.available)) +
                " free for training.output, " + folder.string() + ", where " +
                std::to_string(num_checkpoints) + " more checkpoints of " +
                format_bytes(checkpoint_bytes) + " must fit: free some, or lower " +
                "training.keep_checkpoints";
  }
  refuse_together(world, complaint);
}

}  // namespace mirabelle
