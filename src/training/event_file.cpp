#include "mirabelle/training/event_file.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cstdio>

#include "mirabelle/core/error.h"
#include "tensorboard_event.pb.h"

namespace mirabelle {
namespace fs = std::filesystem;

namespace {

static_assert(std::endian::native == std::endian::little);

int64_t microseconds_since_1970() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

/// TensorBoard reads files in the order of their names, and wants "tfevents" in each.
std::string file_name() {
  const int64_t now = microseconds_since_1970();
  char host[256] = "localhost", name[400];
  ::gethostname(host, sizeof host - 1);
  std::snprintf(name, sizeof name, "events.out.tfevents.%010lld.%06lld.%s.%d",
                static_cast<long long>(now / 1000000), static_cast<long long>(now % 1000000), host,
                static_cast<int>(::getpid()));
  return name;
}

tensorboard::Event event_now(int64_t step) {
  tensorboard::Event event;
  event.set_wall_time(static_cast<double>(microseconds_since_1970()) / 1e6);
  event.set_step(step);
  return event;
}

template <typename T>
std::string bytes_of(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

/// What a byte adds, for the polynomial 0x1edc6f41 with its bits reversed.
constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    table[byte] = crc;
  }
  return table;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = crc_table();
  uint32_t crc = 0xffffffffu;
  for (const char byte : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<uint8_t>(byte)) & 255];
  return ~crc;
}

EventFile::EventFile(const fs::path& folder) : path_(folder / file_name()) {
  std::error_code error;
  fs::create_directories(folder, error);
  MIRABELLE_CHECK(!error, folder.string(), ": cannot create: ", error.message());
  file_.open(path_, std::ios::binary);
  tensorboard::Event version = event_now(0);
  version.set_file_version("brain.Event:2");
  write_record(version.SerializeAsString());
}

void EventFile::restart(int64_t step) {
  tensorboard::Event event = event_now(step);
  event.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  write_record(event.SerializeAsString());
}

void EventFile::add(int64_t step, const std::vector<std::pair<std::string, double>>& figures) {
  tensorboard::Event event = event_now(step);
  for (const auto& [tag, value] : figures) {
    tensorboard::Summary::Value& figure = *event.mutable_summary()->add_value();
    figure.set_tag(tag);
    figure.set_simple_value(static_cast<float>(value));
  }
  write_record(event.SerializeAsString());
}

void EventFile::write_record(const std::string& bytes) {
  const std::string length = bytes_of(static_cast<uint64_t>(bytes.size()));
  file_ << length << bytes_of(masked_crc32c(length)) << bytes << bytes_of(masked_crc32c(bytes));
  file_.flush();
  MIRABELLE_CHECK(file_.good(), path_.string(), ": cannot write");
}

}  // namespace mirabelle
