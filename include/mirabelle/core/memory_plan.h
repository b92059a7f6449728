#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "mirabelle/core/device.h"

namespace mirabelle {

/// What a process is going to allocate on its device, known before it does: so that too little
/// memory is said at once and with all figures, not by an allocation somewhere in the middle.
class MemoryPlan {
 public:
  void add(std::string what, int64_t bytes) { items_.emplace_back(std::move(what), bytes); }
  int64_t total() const;
  const std::vector<std::pair<std::string, int64_t>>& items() const { return items_; }

  /// "weights 1.2 GiB, gradients 2.4 GiB: 3.6 GiB"
  std::string describe() const;

  /// Throws a kUsage Error with the plan if it does not fit. `advice` says what would help.
  void check_fits(int64_t available_bytes, Device device, const std::string& advice) const;

 private:
  std::vector<std::pair<std::string, int64_t>> items_;
};

/// Memory of the device that is free now: of the chosen GPU, or of this machine (what Linux calls
/// available).
int64_t available_bytes(Device device);

/// "512 B", "3.4 MiB", "80.0 GiB"
std::string format_bytes(int64_t bytes);

}  // namespace mirabelle
