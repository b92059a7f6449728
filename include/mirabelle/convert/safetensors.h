#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/core/tensor.h"
#include "mirabelle/model/parameters.h"

namespace mirabelle {

// A .safetensors file: 8 bytes with the length of the header, little endian; the header, JSON:
//   {"__metadata__": {TEXT: TEXT, ...}, NAME: {"dtype": "F32", "shape": [2, 3], "data_offsets":
//    [begin, end]}, ...}
// and the data, of which the offsets speak: row-major, little endian, without gaps or overlaps.

struct SafetensorsTensor {
  std::string dtype;  ///< as in the file: F32, F16, BF16, I64, ...
  Shape shape;
  int64_t begin = 0, end = 0;  ///< bytes of the data
};

/// Opens a file and checks all of its header: nothing that it says is trusted. Errors are kData
/// Errors that name the file and the tensor. Memory is a small multiple of the header's size.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  const std::map<std::string, SafetensorsTensor>& tensors() const { return tensors_; }

  /// Elements [begin, begin + out.size()) of a tensor of dtype F32, F16 or BF16, in float32, which
  /// holds them exactly.
  void read(const std::string& name, int64_t begin, std::span<float> out) const;

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  void read_bytes(int64_t offset, void* to, int64_t bytes) const;
  void read_header(int64_t file_bytes);
  void check_coverage(int64_t data_bytes) const;

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;
  std::map<std::string, SafetensorsTensor> tensors_;
  int64_t data_begin_ = 0;  // in the file
};

/// Writes a file of float32 or bfloat16 tensors, whose elements are given one tensor after the
/// other. The file is there as soon as the writer is; whoever needs it whole or not at all gives a
/// path in an AtomicPath.
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::filesystem::path path, DType dtype,
                    const std::vector<LogicalTensor>& tensors);

  /// The next elements, rounded to the dtype.
  void append(std::span<const float> values);
  /// Throws unless all elements of all tensors were given and the disk took them.
  void close();

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  void write(const void* data, size_t bytes);

  std::filesystem::path path_;
  DType dtype_;
  std::unique_ptr<std::FILE, Close> file_;
  int64_t missing_elements_ = 0;
  std::vector<BFloat16> rounded_;
};

}  // namespace mirabelle
