#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>
#include <vector>

namespace mirabelle {

/// Sorts more byte strings than fit in memory, as std::string_view compares them: sorted runs are
/// written to a folder and merged. Records whose order is that of numbers use append_ascending.
class ExternalSorter {
 public:
  /// The folder of the runs is created when the first run is written; its owner removes it.
  ExternalSorter(std::filesystem::path run_folder, int64_t memory_bytes);

  void add(std::string_view record);
  /// Calls `visit` with every record, ascending. May be called again; nothing may be added in
  /// between.
  void for_each(const std::function<void(std::string_view)>& visit);
  int64_t num_runs() const { return static_cast<int64_t>(runs_.size()); }

 private:
  struct Entry {
    uint64_t prefix[2];  // the first 16 bytes as numbers: most comparisons end here
    uint64_t offset;
    uint64_t size;
  };
  void sort_entries();
  void spill();
  std::filesystem::path new_run();
  void merge(const std::vector<std::filesystem::path>& runs,
             const std::function<void(std::string_view)>& visit) const;

  std::filesystem::path folder_;
  int64_t memory_bytes_;
  std::vector<char> bytes_;
  std::vector<Entry> entries_;
  bool sorted_ = false;
  int64_t num_created_ = 0;
  std::vector<std::filesystem::path> runs_;
};

/// Appends 8 bytes that compare like the number.
void append_ascending(std::vector<char>& record, int64_t value);
int64_t read_ascending(const char* bytes);

}  // namespace mirabelle
