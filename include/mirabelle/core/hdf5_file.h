#pragma once

#include <hdf5.h>

#include <filesystem>
#include <string>
#include <vector>

#include "mirabelle/core/tensor.h"
#include "mirabelle/core/unique_handle.h"

namespace mirabelle {

/// One HDF5 file of plain arrays. All errors are kData Errors that name file and dataset. What the
/// file does not hold itself, uncompressed, is not read, so that no allocation is larger than the
/// file. Trusts the library with the format: read no file from where programs would not be taken.
/// HDF5 as Debian builds it serves one thread at a time per process.
class Hdf5File {
 public:
  static Hdf5File create(const std::filesystem::path& path);  ///< replaces an existing file
  static Hdf5File open(const std::filesystem::path& path);    ///< for reading

  const std::filesystem::path& path() const { return path_; }
  bool contains(const std::string& name) const;                          ///< in this file itself
  std::vector<std::string> names(const std::string& group = "/") const;  ///< sorted
  Shape shape(const std::string& name) const;
  /// Throws unless the stored element type is exactly this one.
  DType dtype(const std::string& name) const;

  /// Writes a whole new dataset; groups in the name ("features/title") are created.
  void write(const std::string& name, const TensorView& values);
  /// A dataset of this shape, to be filled by write_rows().
  void create_dataset(const std::string& name, const Shape& shape, DType dtype);
  /// Writes the rows [begin, begin + rows.shape[0]) of a dataset of this row shape and dtype.
  void write_rows(const std::string& name, int64_t begin, const TensorView& rows);
  /// An empty dataset [0, row...] that grows by append(). A chunk of it, which is what the disk
  /// gives for a piece however small, has about `chunk_bytes`.
  void create_appendable(const std::string& name, const Shape& row, DType dtype,
                         int64_t chunk_bytes = 1 << 20);
  void append(const std::string& name, const TensorView& rows);

  /// Reads the rows [begin, begin + out.shape[0]) of a dataset of out's row shape and dtype.
  void read_rows(const std::string& name, int64_t begin, const TensorView& out) const;
  template <typename T>
  std::vector<T> read(const std::string& name) const {
    const Shape extent = shape(name);
    check_rows(name, 0, view_of(static_cast<T*>(nullptr), extent));
    std::vector<T> values(extent.num_elements());
    read_rows(name, 0, view_of(values.data(), extent));
    return values;
  }

  void write_text(const std::string& name, const std::string& text);  ///< as an array of bytes
  std::string read_text(const std::string& name) const;

  /// Many strings as two arrays, name_bytes and name_offsets [n + 1]: fast to read in ranges.
  void write_strings(const std::string& name, const std::vector<std::string>& strings);
  std::vector<std::string> read_strings(const std::string& name) const;
  std::vector<std::string> read_strings(const std::string& name, int64_t begin, int64_t end) const;

  /// Ends writing. Throws if the disk did not take everything, which a destructor could not say.
  void close();

 private:
  static void close_file(hid_t id) { H5Fclose(id); }
  explicit Hdf5File(std::filesystem::path path) : path_(std::move(path)) {}
  [[noreturn]] void fail(const std::string& name, const std::string& what) const;
  bool is_for_reading() const;
  void check_stored(const std::string& name, hid_t dataset) const;
  void check_rows(const std::string& name, int64_t begin, const TensorView& rows) const;
  void close_written(const std::string& name, hid_t dataset) const;

  std::filesystem::path path_;
  UniqueHandle<hid_t, close_file, hid_t{-1}> file_;
};

}  // namespace mirabelle
