#include "mirabelle/data/npy.h"

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "line_reader.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr char kMagic[] = "\x93NUMPY";

/// The text after `key` and the colon in the header, a Python dictionary such as
/// {'descr': '<f2', 'fortran_order': False, 'shape': (12102, 128), }
std::string_view value_of(std::string_view header, std::string_view key) {
  size_t at = header.find(key);
  if (at == std::string_view::npos) return {};
  at = header.find(':', at);
  if (at == std::string_view::npos) return {};
  at = header.find_first_not_of(' ', at + 1);
  return at == std::string_view::npos ? std::string_view() : header.substr(at);
}

bool take_extent(std::string_view& text, int64_t& extent) {
  text.remove_prefix(std::min(text.find_first_not_of(" (,"), text.size()));
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), extent);
  text.remove_prefix(end - text.data());
  return error == std::errc() && extent >= 0;
}

}  // namespace

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half} >> 15, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 0) return std::ldexp(sign ? -1.0f : 1.0f, -24) * static_cast<float>(fraction);
  const uint32_t wide = exponent == 31 ? 255 : exponent + (127 - 15);
  return std::bit_cast<float>(sign << 31 | wide << 23 | fraction << 13);
}

NpyReader::NpyReader(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code ignored;
  MIRABELLE_CHECK_DATA(!std::filesystem::is_directory(path_, ignored), path_.string(),
                       ": is a folder, wanted a .npy file");
  file_.reset(std::fopen(path_.c_str(), "rb"));
  MIRABELLE_CHECK_DATA(file_, path_.string(), ": cannot read: ", std::strerror(errno));
  unsigned char start[12] = {};
  const size_t got = std::fread(start, 1, 10, file_.get());
  MIRABELLE_CHECK_DATA(got == 10 && std::memcmp(start, kMagic, 6) == 0, path_.string(),
                       ": is not a .npy file (its first bytes are not \\x93NUMPY)");
  const int version = start[6];
  MIRABELLE_CHECK_DATA(1 <= version && version <= 3, path_.string(), ": has .npy format version ",
                       version, ", wanted 1, 2 or 3");
  if (version > 1 && std::fread(start + 10, 1, 2, file_.get()) != 2) start[8] = start[9] = 0;
  size_t header_bytes = start[8] | size_t{start[9]} << 8;
  if (version > 1) header_bytes |= size_t{start[10]} << 16 | size_t{start[11]} << 24;
  MIRABELLE_CHECK_DATA(header_bytes < (1 << 20), path_.string(), ": has a header of ", header_bytes,
                       " bytes");
  std::string header(header_bytes, ' ');
  MIRABELLE_CHECK_DATA(std::fread(header.data(), 1, header_bytes, file_.get()) == header_bytes,
                       path_.string(), ": ends within its header");
  parse_header(header);
  const int64_t wanted = std::ftell(file_.get()) + num_rows_ * dim_ * element_bytes_;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path_, ignored));
  MIRABELLE_CHECK_DATA(bytes == wanted, path_.string(), ": has ", bytes, " bytes, its header (",
                       num_rows_, " x ", dim_, ") wants ", wanted);
}

void NpyReader::parse_header(const std::string& header) {
  const std::string_view type = value_of(header, "'descr'").substr(0, 5);
  element_bytes_ = type == "'<f2'" ? 2 : type == "'<f4'" ? 4 : type == "'<f8'" ? 8 : 0;
  MIRABELLE_CHECK_DATA(element_bytes_ > 0, path_.string(), ": has element type ", type,
                       ", wanted little-endian float16, float32 or float64 ('<f2', '<f4', '<f8')");
  MIRABELLE_CHECK_DATA(value_of(header, "'fortran_order'").starts_with("False"), path_.string(),
                       ": is stored by columns (fortran_order), wanted rows");
  std::string_view shape = value_of(header, "'shape'");
  shape = shape.substr(0, shape.find(')'));
  const std::string all(shape);
  const bool is_matrix = take_extent(shape, num_rows_) && take_extent(shape, dim_) &&
                         shape.find_first_not_of(" ,") == std::string_view::npos;
  // Bounds so that the size below cannot overflow.
  MIRABELLE_CHECK_DATA(is_matrix && dim_ > 0 && dim_ < (1 << 24) && num_rows_ < (int64_t{1} << 32),
                       path_.string(), ": has shape ", all, "), wanted (rows, columns)");
}

void NpyReader::read_rows(int64_t num_rows, float* out) {
  MIRABELLE_CHECK(next_row_ + num_rows <= num_rows_, path_.string(), ": rows [", next_row_, ", ",
                  next_row_ + num_rows, ") of ", num_rows_);
  const int64_t count = num_rows * dim_;
  stored_.resize(count * element_bytes_);
  MIRABELLE_CHECK_DATA(std::fread(stored_.data(), 1, stored_.size(), file_.get()) == stored_.size(),
                       path_.string(), ": cannot read rows from ", next_row_);
  for (int64_t i = 0; i < count; ++i) {
    if (element_bytes_ == 2) {
      uint16_t half;
      std::memcpy(&half, stored_.data() + 2 * i, 2);
      out[i] = half_to_float(half);
    } else if (element_bytes_ == 4) {
      std::memcpy(out + i, stored_.data() + 4 * i, 4);
    } else {
      double value;
      std::memcpy(&value, stored_.data() + 8 * i, 8);
      out[i] = static_cast<float>(value);
    }
    MIRABELLE_CHECK_DATA(std::isfinite(out[i]), path_.string(), ": row ", next_row_ + i / dim_,
                         ", column ", i % dim_, ": ", out[i], ", wanted a finite number");
  }
  next_row_ += num_rows;
}

void write_npy(const std::filesystem::path& path, const float* values, int64_t num_rows,
               int64_t dim) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" +
                       std::to_string(num_rows) + ", " + std::to_string(dim) + "), }";
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');  // data start aligned
  header += '\n';
  std::string file(kMagic, 6);
  file +=
      {'\1', '\0', static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8)};
  file += header;
  file.append(reinterpret_cast<const char*>(values), num_rows * dim * sizeof(float));
  write_text_file(path, file);
}

}  // namespace mirabelle
