#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace mirabelle {

/// Reads a matrix from a NumPy .npy file, format versions 1 to 3: float16, float32 or float64,
/// little endian, rows one after the other ("C order"). All errors are kData Errors that name the
/// file.
class NpyReader {
 public:
  /// Reads the header, and checks that the file is as long as it says.
  explicit NpyReader(std::filesystem::path path);

  int64_t num_rows() const { return num_rows_; }
  int64_t dim() const { return dim_; }

  /// The next rows as float32 [num_rows, dim]. Throws if one holds a NaN or infinity.
  void read_rows(int64_t num_rows, float* out);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  void parse_header(const std::string& header);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;
  int64_t num_rows_ = 0, dim_ = 0;
  int element_bytes_ = 0;
  int64_t next_row_ = 0;
  std::vector<unsigned char> stored_;
};

/// IEEE 754 binary16, exactly.
float half_to_float(uint16_t half);

/// Writes float32 [num_rows, dim] as a .npy file, for tests and tools.
void write_npy(const std::filesystem::path& path, const float* values, int64_t num_rows,
               int64_t dim);

}  // namespace mirabelle
