#include "mirabelle/core/logging.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <string>

namespace mirabelle {

void configure_logging(int rank) {
  static const auto logger = spdlog::stderr_color_mt("mirabelle");
  logger->set_pattern(rank == 0 ? "%H:%M:%S %^%l%$ %v"
                                : "%H:%M:%S %^%l%$ [rank " + std::to_string(rank) + "] %v");
  logger->set_level(rank == 0 ? spdlog::level::info : spdlog::level::warn);
  spdlog::set_default_logger(logger);
}

}  // namespace mirabelle
