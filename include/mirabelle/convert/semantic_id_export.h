#pragma once

#include <filesystem>

#include "mirabelle/tokenizer/tokenizer_file.h"

namespace mirabelle {

/// Writes into a folder what a program in another language needs to speak with the model:
///
///   semantic_ids.json        {"schema": "mirabelle-semantic-ids", "version": 1, "vocab_size",
///                             "bos_token", "num_levels", "ranges": [{"name", "begin", "size"},
///                             ...], "items": {ITEM_ID: [token, ...], ...}}   one line an item;
///                             items that share their tokens follow each other, the best first
///   special_tokens_map.json  {"bos_token": "<bos>"}
///   tokenizer.json, tokenizer_config.json
///                            where there are no text tokens: a tokenizer of Hugging Face whose
///                            words
///                             are "<bos>" and "<level_L_C>", separated by blanks
///
/// Nothing is written for a vocabulary of text only.
void write_semantic_ids(const std::filesystem::path& folder, const TokenizerFile& tokenizer);

}  // namespace mirabelle
