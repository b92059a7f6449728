#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "mirabelle/core/files.h"

namespace mirabelle {

/// The split_hash of data/corpus_writer.h, user by user.
class SplitHash {
 public:
  void begin_user(std::string_view id) { line_.assign(id); }
  void add_item(std::string_view id) { (line_ += '\t') += id; }
  void end_user(int64_t train_length, int64_t valid_length) {
    (line_ += '\t') += std::to_string(train_length);
    (line_ += '\t') += std::to_string(valid_length);
    line_ += '\n';
    sha_.update(line_.data(), line_.size());
  }
  std::string hex_digest() { return sha_.hex_digest(); }

 private:
  Sha256 sha_;
  std::string line_;
};

}  // namespace mirabelle
