#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace mirabelle {

/// A file or folder that appears whole or not at all: write to `path()`, beside the target, then
/// `commit()`. Without a commit the destructor removes what was written.
class AtomicPath {
 public:
  /// Creates the parent folder of `target` if it is missing. Removes what a killed run left behind.
  explicit AtomicPath(std::filesystem::path target);
  ~AtomicPath();
  AtomicPath(const AtomicPath&) = delete;
  AtomicPath& operator=(const AtomicPath&) = delete;

  const std::filesystem::path& path() const { return partial_; }
  /// Flushes to the disk and renames over the target, of which a former version is replaced.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path partial_;
  bool committed_ = false;
};

/// Throws unless a file can be written there, for those who work long before they do. Creates the
/// parent folder if it is missing.
void check_writable(const std::filesystem::path& path);

/// Whether `name`, which a file gives, names something in a folder and nothing beyond it.
bool is_plain_name(std::string_view name);

/// The whole file. Throws a kData Error that names the path.
std::string read_text_file(const std::filesystem::path& path);
/// Atomically replaces the file.
void write_text_file(const std::filesystem::path& path, std::string_view text);

/// Returns when the disk has the file's, or folder's, contents.
void sync_to_disk(const std::filesystem::path& path);

/// SHA-256 in hexadecimal, as `sha256sum` prints it.
std::string sha256_of_file(const std::filesystem::path& path);

/// SHA-256 of data that comes in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, size_t bytes);
  std::string hex_digest();  ///< ends the computation

 private:
  void* context_;
};

}  // namespace mirabelle
