#pragma once

#include <filesystem>
#include <string_view>

namespace mirabelle::fuzz {

/// Makes an HDF5 file of what the text says, through the library, so that its format is always good
/// and only what it holds is hostile. Each dataset is
///   \n@NAME TYPE EXTENT...\n its bytes, up to the next "\n@" or the end
/// with up to four extents and the types f32 f64 i16 i32 i64 u8. Bytes that are missing are zeros.
/// A letter behind the type: "?" promises the elements and stores none, "z" compresses them. Three
/// further types make links: "link" and "same", soft and hard ones to the name that the bytes say,
/// and "file", to that other file.
/// What the library refuses is left out.
void write_hdf5(const std::filesystem::path& path, std::string_view text);

}  // namespace mirabelle::fuzz
