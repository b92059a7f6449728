#include "mirabelle/convert/safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "mirabelle/core/json.h"
#include "mirabelle/data/npy.h"  // half_to_float

namespace mirabelle {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

static_assert(std::endian::native == std::endian::little, "the files are little endian");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's own limit
constexpr const char* kMetadata = "__metadata__";

/// 0 if the format does not have it.
int64_t element_bytes(const std::string& dtype) {
  static const std::map<std::string, int64_t> kBytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
      {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8}};
  const auto found = kBytes.find(dtype);
  return found == kBytes.end() ? 0 : found->second;
}

/// The bytes that dtype and shape stand for.
int64_t bytes_of(const SafetensorsTensor& tensor, const std::string& where) {
  int64_t bytes = element_bytes(tensor.dtype);
  MIRABELLE_CHECK_DATA(bytes > 0, where, " has the unknown dtype '", tensor.dtype, "'");
  bool is_empty = false;
  for (int axis = 0; axis < tensor.shape.rank(); ++axis) {
    const int64_t extent = tensor.shape[axis];
    is_empty |= extent == 0;
    MIRABELLE_CHECK_DATA(
        extent >= 0 && (extent == 0 || !__builtin_mul_overflow(bytes, extent, &bytes)), where,
        " has the shape ", tensor.shape, ", more than any file holds");
  }
  return is_empty ? 0 : bytes;
}

SafetensorsTensor tensor_from_json(const json& entry, const std::string& where) {
  SafetensorsTensor tensor;
  tensor.dtype = json_field<std::string>(entry, "dtype", where);
  const auto extents = json_field<std::vector<int64_t>>(entry, "shape", where);
  MIRABELLE_CHECK_DATA(extents.size() <= Shape::kMaxRank, where, " has ", extents.size(),
                       " axes, wanted at most ", Shape::kMaxRank);
  tensor.shape = Shape::of(extents);
  const auto offsets = json_field<std::vector<int64_t>>(entry, "data_offsets", where);
  MIRABELLE_CHECK_DATA(offsets.size() == 2 && 0 <= offsets[0] && offsets[0] <= offsets[1], where,
                       " has data_offsets that are no range");
  tensor.begin = offsets[0];
  tensor.end = offsets[1];
  const int64_t bytes = bytes_of(tensor, where);
  MIRABELLE_CHECK_DATA(tensor.end - tensor.begin == bytes, where, " of dtype ", tensor.dtype,
                       " and shape ", tensor.shape, " has ", bytes, " bytes, its data_offsets ",
                       tensor.end - tensor.begin);
  return tensor;
}

}  // namespace

SafetensorsReader::SafetensorsReader(std::filesystem::path path)
    : path_(std::move(path)), file_(std::fopen(path_.c_str(), "rb")) {
  MIRABELLE_CHECK_DATA(file_, path_.string(), ": cannot read (", std::strerror(errno), ")");
  MIRABELLE_CHECK_DATA(std::filesystem::is_regular_file(path_), path_.string(), ": not a file");
  read_header(static_cast<int64_t>(std::filesystem::file_size(path_)));
}

void SafetensorsReader::read_bytes(int64_t offset, void* to, int64_t bytes) const {
  const bool is_read = std::fseek(file_.get(), offset, SEEK_SET) == 0 &&
                       std::fread(to, 1, bytes, file_.get()) == static_cast<size_t>(bytes);
  MIRABELLE_CHECK_DATA(is_read, path_.string(), ": cannot read ", bytes, " bytes at ", offset);
}

void SafetensorsReader::read_header(int64_t file_bytes) {
  MIRABELLE_CHECK_DATA(file_bytes >= kLengthBytes, path_.string(), ": ", file_bytes,
                       " bytes, a .safetensors file has at least ", kLengthBytes);
  uint64_t length = 0;
  read_bytes(0, &length, kLengthBytes);
  const int64_t limit = std::min(file_bytes - kLengthBytes, kMaxHeaderBytes);
  MIRABELLE_CHECK_DATA(length <= static_cast<uint64_t>(limit), path_.string(), ": a header of ",
                       length, " bytes in a file of ", file_bytes, ", wanted at most ", limit);
  std::string text(length, '\0');
  read_bytes(kLengthBytes, text.data(), static_cast<int64_t>(length));
  const std::string where = path_.string() + ": header";
  const json header = parse_json(text, where);
  MIRABELLE_CHECK_DATA(header.is_object(), where, " is no JSON object");
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadata) continue;
    tensors_[name] = tensor_from_json(entry, path_.string() + ": tensor " + shown(name));
  }
  data_begin_ = kLengthBytes + static_cast<int64_t>(length);
  check_coverage(file_bytes - data_begin_);
}

/// Every byte of the data belongs to exactly one tensor.
void SafetensorsReader::check_coverage(int64_t data_bytes) const {
  std::vector<std::pair<const SafetensorsTensor*, const std::string*>> in_order;
  for (const auto& [name, tensor] : tensors_) in_order.push_back({&tensor, &name});
  std::sort(in_order.begin(), in_order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first->begin, a.first->end) < std::pair(b.first->begin, b.first->end);
  });
  int64_t end = 0;
  for (const auto& [tensor, name] : in_order) {
    MIRABELLE_CHECK_DATA(tensor->begin == end, path_.string(), ": tensor ", shown(*name),
                         " begins at byte ", tensor->begin, " of the data, wanted ", end,
                         tensor->begin < end ? " (tensors overlap)" : " (bytes of no tensor)");
    end = tensor->end;
  }
  MIRABELLE_CHECK_DATA(end == data_bytes, path_.string(), ": the tensors have ", end,
                       " bytes, the file has ", data_bytes, " bytes of data");
}

void SafetensorsReader::read(const std::string& name, int64_t begin, std::span<float> out) const {
  const auto found = tensors_.find(name);
  MIRABELLE_CHECK_DATA(found != tensors_.end(), path_.string(), ": has no tensor ", shown(name));
  const SafetensorsTensor& tensor = found->second;
  const auto count = static_cast<int64_t>(out.size());
  MIRABELLE_CHECK(0 <= begin && begin + count <= tensor.shape.num_elements(), name, " ",
                  tensor.shape, " has no elements [", begin, ", ", begin + count, ")");
  const int64_t offset = data_begin_ + tensor.begin + begin * element_bytes(tensor.dtype);
  if (tensor.dtype == "F32") return read_bytes(offset, out.data(), count * 4);
  const bool is_half = tensor.dtype == "F16";
  MIRABELLE_CHECK_DATA(is_half || tensor.dtype == "BF16", path_.string(), ": tensor ", shown(name),
                       " is of dtype ", tensor.dtype, ", wanted F32, F16 or BF16");
  // into the second half of the memory, from where they are widened front to back
  auto* const narrow = reinterpret_cast<uint16_t*>(out.data()) + count;
  read_bytes(offset, narrow, count * 2);
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, narrow + i, sizeof bits);
    out[i] = is_half ? half_to_float(bits) : static_cast<float>(std::bit_cast<BFloat16>(bits));
  }
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, DType dtype,
                                     const std::vector<LogicalTensor>& tensors)
    : path_(std::move(path)), dtype_(dtype), file_(std::fopen(path_.c_str(), "wb")) {
  MIRABELLE_CHECK(file_, path_.string(), ": cannot write (", std::strerror(errno), ")");
  MIRABELLE_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16,
                  "weights are written in float32 or bfloat16, not in ", to_string(dtype));
  ordered_json header = {{kMetadata, {{"format", "pt"}}}};  // as transformers wants it
  int64_t end = 0;
  for (const LogicalTensor& tensor : tensors) {
    ordered_json shape = ordered_json::array();
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
    const int64_t begin = end;
    end += tensor.shape.num_elements() * size_in_bytes(dtype);
    header[tensor.name] = {{"dtype", dtype == DType::kFloat32 ? "F32" : "BF16"},
                           {"shape", shape},
                           {"data_offsets", {begin, end}}};
    missing_elements_ += tensor.shape.num_elements();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are aligned
  const uint64_t length = text.size();
  write(&length, sizeof length);
  write(text.data(), text.size());
}

void SafetensorsWriter::write(const void* data, size_t bytes) {
  MIRABELLE_CHECK(std::fwrite(data, 1, bytes, file_.get()) == bytes, path_.string(),
                  ": cannot write (", std::strerror(errno), ")");
}

void SafetensorsWriter::append(std::span<const float> values) {
  missing_elements_ -= static_cast<int64_t>(values.size());
  MIRABELLE_CHECK(missing_elements_ >= 0, path_.string(), ": more elements than its tensors have");
  if (dtype_ == DType::kFloat32) return write(values.data(), values.size_bytes());
  rounded_.resize(values.size());
  std::transform(values.begin(), values.end(), rounded_.begin(),
                 [](float value) { return BFloat16(value); });
  write(rounded_.data(), rounded_.size() * sizeof(BFloat16));
}

void SafetensorsWriter::close() {
  MIRABELLE_CHECK(missing_elements_ == 0, path_.string(), ": ", missing_elements_,
                  " elements were not given");
  MIRABELLE_CHECK(std::fclose(file_.release()) == 0, path_.string(), ": cannot write (",
                  std::strerror(errno), ")");
}

}  // namespace mirabelle
