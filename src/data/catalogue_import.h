#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "mirabelle/data/corpus_writer.h"

namespace mirabelle {

struct CatalogueItem {
  std::string id;
  std::string title;     ///< empty if unknown
  std::string metadata;  ///< the line's JSON object
};

/// Reads an items.jsonl: one JSON object per line with an "item" (a string or an integer) and
/// perhaps a "title". `where` is "file:line". Throws kData Errors that name the line.
void read_catalogue(
    const std::filesystem::path& path,
    const std::function<void(const CatalogueItem& item, const std::string& where)>& visit);

/// Adds a feature matrix [num_items + 1, dim], row i + 1 = item number i, row 0 = zeros.
void import_features(const std::filesystem::path& path, const std::string& name,
                     CorpusWriter& writer);

}  // namespace mirabelle
