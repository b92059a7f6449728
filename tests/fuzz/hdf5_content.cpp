#include "hdf5_content.h"

#include <hdf5.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace mirabelle::fuzz {
namespace {

constexpr hsize_t kMaxStoredBytes = 1 << 16;

hid_t type_of(std::string_view name) {
  static const std::map<std::string_view, hid_t> types = {
      {"f32", H5T_NATIVE_FLOAT}, {"f64", H5T_NATIVE_DOUBLE}, {"i16", H5T_NATIVE_INT16},
      {"i32", H5T_NATIVE_INT32}, {"i64", H5T_NATIVE_INT64},  {"u8", H5T_NATIVE_UINT8}};
  const auto found = types.find(name);
  return found == types.end() ? H5I_INVALID_HID : found->second;
}

/// The bytes that the elements take; more than any file where that is too many to count.
hsize_t bytes_of(const std::vector<hsize_t>& extents, hid_t type) {
  hsize_t bytes = H5Tget_size(type);
  for (const hsize_t extent : extents) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return HSIZE_UNDEF;
  }
  return bytes;
}

void add_dataset(hid_t file, hid_t links, const std::string& name, std::string type_name,
                 const std::vector<hsize_t>& extents, std::string bytes) {
  const bool promised = type_name.ends_with('?'), packed = type_name.ends_with('z');
  if (promised || packed) type_name.pop_back();
  const hid_t type = type_of(type_name);
  if (type == H5I_INVALID_HID || extents.size() > 4) return;
  const hid_t space = H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr);
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  if (packed && !extents.empty()) {
    std::vector<hsize_t> chunk;
    for (const hsize_t extent : extents) chunk.push_back(std::clamp<hsize_t>(extent, 1, 8));
    H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
    H5Pset_deflate(properties, 1);
  }
  const hid_t dataset = H5Dcreate2(file, name.c_str(), type, space, links, properties, H5P_DEFAULT);
  const hsize_t stored = bytes_of(extents, type);
  if (dataset >= 0 && !promised && 0 < stored && stored <= kMaxStoredBytes) {
    bytes.resize(stored);
    H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data());
  }
  if (dataset >= 0) H5Dclose(dataset);
  if (space >= 0) H5Sclose(space);
  H5Pclose(properties);
}

void add(hid_t file, hid_t links, std::string_view record) {
  const size_t line_end = std::min(record.find('\n'), record.size());
  std::istringstream line{std::string(record.substr(0, line_end))};
  const std::string bytes(record.substr(std::min(line_end + 1, record.size())));
  std::string name, type;
  std::vector<hsize_t> extents;
  line >> name >> type;
  for (hsize_t extent = 0; line >> extent;) extents.push_back(extent);
  if (name.empty()) return;
  if (type == "link") {
    H5Lcreate_soft(bytes.c_str(), file, name.c_str(), links, H5P_DEFAULT);
  } else if (type == "same") {
    H5Lcreate_hard(file, bytes.c_str(), file, name.c_str(), links, H5P_DEFAULT);
  } else if (type == "file") {
    H5Lcreate_external(bytes.c_str(), "/x", file, name.c_str(), links, H5P_DEFAULT);
  } else {
    add_dataset(file, links, name, type, extents, bytes);
  }
}

}  // namespace

void write_hdf5(const std::filesystem::path& path, std::string_view text) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_fapl_core(access, 1 << 14, true);  // made in memory, then written at once
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  if (file < 0) std::abort();
  const hid_t links = H5Pcreate(H5P_LINK_CREATE);
  H5Pset_create_intermediate_group(links, 1);
  for (size_t begin = text.find("\n@"), end; begin != std::string_view::npos; begin = end) {
    end = text.find("\n@", begin + 2);
    add(file, links, text.substr(begin + 2, end == std::string_view::npos ? end : end - begin - 2));
  }
  H5Pclose(links);
  H5Fclose(file);
  H5Pclose(access);
}

}  // namespace mirabelle::fuzz
