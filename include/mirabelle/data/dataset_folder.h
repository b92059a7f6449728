#pragma once

#include <filesystem>

#include "mirabelle/data/corpus_writer.h"

namespace mirabelle {

// A dataset folder:
//
//   sequences.txt    one line per user: USER_ID ITEM ITEM …, oldest first; items are numbered from
//   1 items.jsonl      optional: one JSON object per item, sorted by "item"; "title" is used, all
//   is kept timestamps.txt   optional: the shape of sequences.txt, seconds since 1970, -1 = unknown
//   NAME.txt         optional, any number: the shape of sequences.txt, one number per event
//   features/NAME.npy  optional, any number: float16/32/64 [num_items + 1, dim], row i = item i,
//                    row 0 = zeros
//
// Without items.jsonl the catalogue is as long as the features say, or else goes up to the largest
// item number.

/// Imports a dataset folder as a corpus at `output`. Streams: memory grows with the items only,
/// apart from a bounded buffer (256 MiB) in which user IDs are sorted, to find one that comes
/// twice. Throws kData Errors that name file and line.
void import_dataset_folder(const std::filesystem::path& source, const std::filesystem::path& output,
                           const CorpusOptions& options);

}  // namespace mirabelle
