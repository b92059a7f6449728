#include "mirabelle/core/memory_plan.h"

#include <fstream>
#include <limits>

#include "mirabelle/core/error.h"
#include "mirabelle/core/table.h"

namespace mirabelle {

int64_t MemoryPlan::total() const {
  int64_t total = 0;
  for (const auto& [what, bytes] : items_) total += bytes;
  return total;
}

std::string MemoryPlan::describe() const {
  std::string text;
  for (const auto& [what, bytes] : items_) {
    text += (text.empty() ? "" : ", ") + what + " " + format_bytes(bytes);
  }
  return text + ": " + format_bytes(total());
}

void MemoryPlan::check_fits(int64_t available_bytes, Device device,
                            const std::string& advice) const {
  MIRABELLE_CHECK_USAGE(total() <= available_bytes, "a rank needs ", format_bytes(total()), " on ",
                        to_string(device), ", where it can have ", format_bytes(available_bytes),
                        ": ", describe(), "; ", advice);
}

int64_t available_bytes(Device device) {
  if (device == Device::kCuda) return cuda_device_facts().free_bytes;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("MemAvailable:")) return std::stoll(line.substr(13)) * 1024;  // in KiB
  }
  return std::numeric_limits<int64_t>::max();  // not Linux as we know it
}

std::string format_bytes(int64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  return format_number(value, unit == 0 ? 0 : 1) + " " + units[unit];
}

}  // namespace mirabelle
