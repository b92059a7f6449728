#include "external_sorter.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <queue>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxOpenRuns = 128;

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

uint64_t big_endian(const char* bytes, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) {
    value = value << 8 | (i < size ? static_cast<unsigned char>(bytes[i]) : 0);
  }
  return value;
}

/// A run is a file of records, each a uint32 size and that many bytes.
class RunWriter {
 public:
  explicit RunWriter(const fs::path& path) : path_(path), file_(std::fopen(path.c_str(), "wb")) {
    MIRABELLE_CHECK(file_, path.string(), ": cannot create: ", std::strerror(errno));
    std::setvbuf(file_.get(), nullptr, _IOFBF, 1 << 20);
  }
  void write(std::string_view record) {
    const auto size = static_cast<uint32_t>(record.size());
    std::fwrite(&size, sizeof size, 1, file_.get());
    std::fwrite(record.data(), 1, record.size(), file_.get());
    if (std::ferror(file_.get())) fail();
  }
  void close() {
    if (std::fflush(file_.get()) != 0) fail();
    file_.reset();
  }

 private:
  void fail() const {
    throw_error(ErrorKind::kData, path_.string(), ": cannot write: ", std::strerror(errno));
  }
  fs::path path_;
  File file_;
};

class RunReader {
 public:
  RunReader(const fs::path& path, size_t buffer_bytes)
      : path_(path), file_(std::fopen(path.c_str(), "rb")) {
    MIRABELLE_CHECK(file_, path.string(), ": cannot read: ", std::strerror(errno));
    std::setvbuf(file_.get(), nullptr, _IOFBF, buffer_bytes);
  }
  bool next() {
    uint32_t size = 0;
    if (std::fread(&size, sizeof size, 1, file_.get()) != 1) return false;
    record_.resize(size);
    MIRABELLE_CHECK(std::fread(record_.data(), 1, size, file_.get()) == size, path_.string(),
                    ": ends within a record");
    return true;
  }
  std::string_view record() const { return record_; }

 private:
  fs::path path_;
  File file_;
  std::string record_;
};

}  // namespace

ExternalSorter::ExternalSorter(fs::path run_folder, int64_t memory_bytes)
    : folder_(std::move(run_folder)), memory_bytes_(memory_bytes) {}

void ExternalSorter::add(std::string_view record) {
  const size_t head = std::min<size_t>(record.size(), 8);
  entries_.push_back({{big_endian(record.data(), record.size()),
                       big_endian(record.data() + head, record.size() - head)},
                      bytes_.size(),
                      record.size()});
  bytes_.insert(bytes_.end(), record.begin(), record.end());
  sorted_ = false;
  // A vector that grows holds its old and its new storage for a moment, hence capacity, not size.
  const size_t used = bytes_.capacity() + entries_.capacity() * sizeof(Entry);
  const bool grows =
      bytes_.size() + record.size() > bytes_.capacity() || entries_.size() == entries_.capacity();
  if (static_cast<int64_t>(grows ? 3 * used : used) > memory_bytes_) spill();
}

void ExternalSorter::sort_entries() {
  if (sorted_) return;
  const char* const bytes = bytes_.data();
  std::sort(entries_.begin(), entries_.end(), [bytes](const Entry& a, const Entry& b) {
    if (a.prefix[0] != b.prefix[0]) return a.prefix[0] < b.prefix[0];
    if (a.prefix[1] != b.prefix[1]) return a.prefix[1] < b.prefix[1];
    return std::string_view(bytes + a.offset, a.size) < std::string_view(bytes + b.offset, b.size);
  });
  sorted_ = true;
}

fs::path ExternalSorter::new_run() {
  std::error_code error;
  fs::create_directories(folder_, error);
  MIRABELLE_CHECK(!error, folder_.string(), ": cannot create: ", error.message());
  return folder_ / ("run-" + std::to_string(num_created_++));
}

void ExternalSorter::spill() {
  if (entries_.empty()) return;
  sort_entries();
  const fs::path path = new_run();
  RunWriter run(path);
  for (const Entry& entry : entries_) run.write({bytes_.data() + entry.offset, entry.size});
  run.close();
  runs_.push_back(path);
  entries_.clear();
  bytes_.clear();
}

void ExternalSorter::merge(const std::vector<fs::path>& runs,
                           const std::function<void(std::string_view)>& visit) const {
  const size_t buffer_bytes =
      std::clamp<size_t>(static_cast<size_t>(memory_bytes_) / (4 * runs.size()), 16 << 10, 1 << 20);
  std::vector<std::unique_ptr<RunReader>> readers;
  const auto later = [&](size_t a, size_t b) {
    return readers[a]->record() > readers[b]->record();
  };
  std::priority_queue<size_t, std::vector<size_t>, decltype(later)> queue(later);
  for (const fs::path& path : runs) {
    readers.push_back(std::make_unique<RunReader>(path, buffer_bytes));
    if (readers.back()->next()) queue.push(readers.size() - 1);
  }
  while (!queue.empty()) {
    const size_t first = queue.top();
    queue.pop();
    visit(readers[first]->record());
    if (readers[first]->next()) queue.push(first);
  }
}

void ExternalSorter::for_each(const std::function<void(std::string_view)>& visit) {
  if (runs_.empty()) {
    sort_entries();
    for (const Entry& entry : entries_) visit({bytes_.data() + entry.offset, entry.size});
    return;
  }
  spill();
  std::vector<char>().swap(bytes_);
  std::vector<Entry>().swap(entries_);
  while (runs_.size() > kMaxOpenRuns) {
    const std::vector<fs::path> oldest(runs_.begin(), runs_.begin() + kMaxOpenRuns);
    const fs::path path = new_run();
    RunWriter run(path);
    merge(oldest, [&](std::string_view record) { run.write(record); });
    run.close();
    for (const fs::path& merged : oldest) fs::remove(merged);
    runs_.erase(runs_.begin(), runs_.begin() + kMaxOpenRuns);
    runs_.push_back(path);
  }
  merge(runs_, visit);
}

void append_ascending(std::vector<char>& record, int64_t value) {
  const uint64_t bits = static_cast<uint64_t>(value) ^ (uint64_t{1} << 63);
  for (int shift = 56; shift >= 0; shift -= 8) record.push_back(static_cast<char>(bits >> shift));
}

int64_t read_ascending(const char* bytes) {
  return static_cast<int64_t>(big_endian(bytes, 8) ^ (uint64_t{1} << 63));
}

}  // namespace mirabelle
