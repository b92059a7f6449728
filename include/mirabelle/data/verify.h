#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace mirabelle {

/// Checks everything that can be checked of a corpus folder: the manifest; every file's size and
/// SHA-256; every dataset's shape and type; offsets, item numbers, times, event columns and
/// lengths; that the lengths are what the split says; user and item IDs (valid, of the promised
/// type, none twice); the catalogue's JSON; that features are finite; counts; and the split hash.
/// Returns every problem, one line each that names file and dataset; none: the corpus is whole.
/// Memory does not grow with the number of users.
///
/// `progress`, if given, is told which part of the work is done.
std::vector<std::string> verify_corpus(const std::filesystem::path& folder,
                                       const std::function<void(double fraction)>& progress = {});

}  // namespace mirabelle
