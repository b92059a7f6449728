#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "external_sorter.h"

namespace mirabelle {

/// Finds IDs that come twice among any number of them, in bounded memory, by sorting.
class UniqueIds {
 public:
  explicit UniqueIds(const std::filesystem::path& run_folder, int64_t memory_bytes = 256 << 20)
      : sorter_(run_folder, memory_bytes) {}

  void add(std::string_view id, int64_t position) {
    record_.assign(id.begin(), id.end());
    record_.push_back('\0');  // no ID holds one, so IDs sort as a whole
    append_ascending(record_, position);
    sorter_.add({record_.data(), record_.size()});
  }

  /// Calls `found` for every ID that has come before, with both positions.
  void for_each_repeated(
      const std::function<void(std::string_view id, int64_t first, int64_t second)>& found) {
    std::string former_id;
    int64_t former_position = 0;
    sorter_.for_each([&](std::string_view record) {
      const std::string_view id = record.substr(0, record.size() - 9);
      const int64_t position = read_ascending(record.data() + record.size() - 8);
      if (id == former_id) found(id, former_position, position);
      former_id = id;
      former_position = position;
    });
  }

 private:
  ExternalSorter sorter_;
  std::vector<char> record_;
};

}  // namespace mirabelle
