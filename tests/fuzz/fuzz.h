#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "mirabelle/core/error.h"

// Every fuzz target defines
//   extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size)
// which libFuzzer calls with inputs that it makes up. A reader may take one or throw an Error; any
// other exception ends the program and is a finding, as is what the sanitizers find, an allocation
// or a duration beyond the limits that CMakeLists.txt sets.

namespace mirabelle::fuzz {

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Runs a reader. Returns whether it took the input. With MIRABELLE_FUZZ_SAY set, prints what it
/// said.
template <typename Read>
bool accepts(const Read& read) {
  static const bool says = std::getenv("MIRABELLE_FUZZ_SAY");
  try {
    read();
    if (says) std::fputs("taken\n", stderr);
    return true;
  } catch (const Error& error) {
    if (says) std::fprintf(stderr, "%s\n", error.what());
    return false;
  }
}

/// A file that lies in memory, for readers that want a path.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("fuzz", 0)) {
    if (descriptor_ < 0) std::abort();
  }
  ~MemoryFile() { ::close(descriptor_); }
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }
  void write(std::string_view bytes) const {
    if (::ftruncate(descriptor_, 0) != 0 || ::pwrite(descriptor_, bytes.data(), bytes.size(), 0) !=
                                                static_cast<ssize_t>(bytes.size())) {
      std::abort();
    }
  }

 private:
  int descriptor_;
};

/// A folder in memory, for readers that want several files. It stays when the program crashes.
class MemoryFolder {
 public:
  MemoryFolder() {
    std::string name = "/dev/shm/mirabelle-fuzz-XXXXXX";
    if (!::mkdtemp(name.data())) std::abort();
    path_ = name;
  }
  ~MemoryFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }
  /// Plainly: the tests' writers wait for the disk.
  void write(const std::string& name, std::string_view bytes) const {
    const int file = ::open((path_ / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ::write(file, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
      std::abort();
    ::close(file);
  }

 private:
  std::filesystem::path path_;
};

}  // namespace mirabelle::fuzz
