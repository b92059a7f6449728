#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mirabelle {

/// Figures of a training run as TensorBoard reads them: a file of records in the framing of
/// TFRecord, each an Event (src/training/tensorboard_event.proto). A record is
///
///   uint64 length | uint32 masked CRC of it | length bytes | uint32 masked CRC of them
///
/// in little-endian order. A run that goes on writes another file beside those before it.
class EventFile {
 public:
  /// Makes a new file in `folder`, which is created if it is missing; its name sorts behind those
  /// made before. Throws if it cannot be written, as all of these do.
  explicit EventFile(const std::filesystem::path& folder);

  /// TensorBoard forgets what it has seen of this step and all after it.
  void restart(int64_t step);
  /// Adds figures by their tags, for example "train/loss". They can be read when this returns.
  void add(int64_t step, const std::vector<std::pair<std::string, double>>& figures);

  const std::filesystem::path& path() const { return path_; }

 private:
  void write_record(const std::string& bytes);

  std::filesystem::path path_;
  std::ofstream file_;
};

/// CRC-32C (Castagnoli), of which TFRecord keeps a masked form.
uint32_t crc32c(std::string_view bytes);
inline uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

}  // namespace mirabelle
