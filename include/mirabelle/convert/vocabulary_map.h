#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/convert/tensor_source.h"
#include "mirabelle/tokenizer/semantic_id.h"

namespace mirabelle {

/// For each token of a vocabulary the row that it has in another one, or one of these.
inline constexpr int64_t kNewRow = -1;   ///< the other does not have the token
inline constexpr int64_t kZeroRow = -2;  ///< padding

/// By the ranges' names: token i of a range is token i of the range of that name. Padding is
/// kZeroRow.
std::vector<int64_t> map_vocabulary(std::span<const TokenRange> to,
                                    std::span<const TokenRange> from);

/// A model with another vocabulary: rows of the embedding and of the head as `rows` says. Row r of
/// new ones is drawn around the mean of the old rows that are used (Hewitt 2021, "Initializing new
/// word embeddings for pretrained language models"), so that the model begins by giving new tokens
/// average probabilities:
///
///   x[r, c] = mean[c] + 0.1 deviation[c] z,   z normal, by (seed, name of the tensor, r, c)
///
/// over the used rows of column c. Reads those rows once to find mean and deviation, if there are
/// new rows. `source` must outlive it.
class RemappedVocabulary : public TensorSource {
 public:
  RemappedVocabulary(const TensorSource& source, std::vector<int64_t> rows, uint64_t seed);

  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  void read_rows(const std::string& name, int64_t begin, std::span<float> out) const override;
  void verify() const override { source_.verify(); }

 private:
  struct Distribution {
    std::vector<double> mean, deviation;  // by column
  };
  Distribution distribution_of(const std::string& name) const;
  void draw(const std::string& name, int64_t row, std::span<float> out) const;

  const TensorSource& source_;
  std::vector<int64_t> rows_;
  uint64_t seed_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, Distribution> distributions_;  // of those with new rows
};

}  // namespace mirabelle
