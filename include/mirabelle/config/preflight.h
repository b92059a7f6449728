#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/comm/parallel_context.h"
#include "mirabelle/core/device.h"

/// What a job of several ranks looks at before it allocates and computes anything. What it finds
/// wrong is thrown on all ranks alike, as a kUsage Error that names rank, host and remedy; a rank
/// that does not answer is the watchdog's. Everything here is collective over `world`, and does
/// nothing if that is one rank, but for check_checkpoint_room.
namespace mirabelle {

/// What must be the same on all ranks, by name: "program", "MPI", ... CPU kernels are compared
/// among ranks of the same instruction set only.
std::map<std::string, std::string> program_facts();

/// The first fact in which a rank differs from the lowest rank that has it, in a line with hosts
/// and the remedy, or nothing. facts[rank], hosts[rank].
std::optional<std::string> difference(const std::vector<std::map<std::string, std::string>>& facts,
                                      const std::vector<std::string>& hosts);

/// Throws unless all ranks run the same program on the same libraries: the first thing in `main`.
void check_same_program(const Communicator& world);

/// Throws unless rank 0's configuration, as YAML, is that of all ranks; names the first line that
/// is not.
void check_same_configuration(const Communicator& world, const std::string& yaml);

/// The groups of a job, after a look at them: rank 0 logs where the ranks are and what makes them
/// slow, then one small all-reduce in each group tells whether it works, and its bandwidth.
ParallelContext checked_groups(const Communicator& world, int64_t tensor_parallel_size,
                               Device device);

/// Throws unless every rank can write in `folder` (made if it is missing) and sees what rank 0
/// writes there, and rank 0 finds room for `num_checkpoints` more of `checkpoint_bytes`.
void check_checkpoint_room(const Communicator& world, const std::filesystem::path& folder,
                           int64_t num_checkpoints, int64_t checkpoint_bytes);

}  // namespace mirabelle
