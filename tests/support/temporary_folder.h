#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle::testing {

/// A new empty folder, removed with everything in it at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "mirabelle-test-XXXXXX").string();
    MIRABELLE_CHECK(::mkdtemp(name.data()), name, ": cannot create");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

  /// Writes a text file, with the folders that it wants, and returns its path.
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    write_text_file(path_ / name, text);
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace mirabelle::testing
