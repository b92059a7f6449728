#pragma once

#include <spdlog/spdlog.h>

namespace mirabelle {

/// Sets up spdlog on standard error: rank 0 logs at `info`, the other ranks only warnings and
/// errors, each line of those marked with the rank.
void configure_logging(int rank);

}  // namespace mirabelle
