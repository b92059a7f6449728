#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "mirabelle/data/corpus_writer.h"

namespace mirabelle {

/// Adds the items of an items.jsonl, one JSON object per line with an "item" (a string or an
/// integer) and perhaps a "title". `check_id(id, where)` may refuse one. Throws kData Errors that
/// name the line.
void import_catalogue(
    const std::filesystem::path& path, CorpusWriter& writer,
    const std::function<void(const std::string& id, const std::string& where)>& check_id);

/// Adds a feature matrix [num_items + 1, dim], row i + 1 = item number i, row 0 = zeros.
void import_features(const std::filesystem::path& path, const std::string& name,
                     CorpusWriter& writer);

}  // namespace mirabelle
