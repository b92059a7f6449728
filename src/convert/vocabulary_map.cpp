#include "mirabelle/convert/vocabulary_map.h"

#include <algorithm>
#include <cmath>

#include "mirabelle/core/random.h"
#include "mirabelle/model/parameters.h"

namespace mirabelle {

std::vector<int64_t> map_vocabulary(std::span<const TokenRange> to,
                                    std::span<const TokenRange> from) {
  std::vector<int64_t> rows;
  for (const TokenRange& range : to) {
    const auto old = std::find_if(from.begin(), from.end(), [&](const TokenRange& other) {
      return other.name == range.name;
    });
    const bool is_padding = range.name == "padding";
    const int64_t num_old = old == from.end() || is_padding ? 0 : std::min(old->size, range.size);
    for (int64_t i = 0; i < num_old; ++i) rows.push_back(old->begin + i);
    rows.resize(rows.size() + range.size - num_old, is_padding ? kZeroRow : kNewRow);
  }
  return rows;
}

RemappedVocabulary::RemappedVocabulary(const TensorSource& source, std::vector<int64_t> rows,
                                       uint64_t seed)
    : source_(source), rows_(std::move(rows)), seed_(seed), tensors_(source.tensors()) {
  const bool has_new = std::find(rows_.begin(), rows_.end(), kNewRow) != rows_.end();
  const auto needed = rows_.empty() ? 0 : *std::max_element(rows_.begin(), rows_.end()) + 1;
  for (auto& [name, tensor] : tensors_) {
    if (!is_vocabulary_tensor(name)) continue;
    MIRABELLE_CHECK_DATA(tensor.shape.rank() == 2 && tensor.num_rows() >= needed, name, " is ",
                         tensor.shape, ", wanted at least ", needed, " rows");
    if (has_new) distributions_[name] = distribution_of(name);
    tensor.shape = tensor.shape.with_outer(static_cast<int64_t>(rows_.size()));
  }
}

RemappedVocabulary::Distribution RemappedVocabulary::distribution_of(
    const std::string& name) const {
  const int64_t columns = source_.info(name).row_size();
  std::vector<bool> is_used(source_.info(name).num_rows());
  for (const int64_t row : rows_) {
    if (row >= 0) is_used[row] = true;
  }
  std::vector<double> sums(columns), squares(columns);
  double count = 0;
  for_each_slab(source_, name, [&](int64_t begin, std::span<const float> values) {
    for (size_t i = 0; i * columns < values.size(); ++i) {
      if (!is_used[begin + i]) continue;
      ++count;
      for (int64_t column = 0; column < columns; ++column) {
        const double x = values[i * columns + column];
        sums[column] += x;
        squares[column] += x * x;
      }
    }
  });
  Distribution result{sums, squares};
  for (int64_t column = 0; column < columns; ++column) {
    const double n = std::max(count, 1.0), mean = sums[column] / n;
    result.mean[column] = mean;
    result.deviation[column] = std::sqrt(std::max(squares[column] / n - mean * mean, 0.0));
  }
  return result;
}

void RemappedVocabulary::draw(const std::string& name, int64_t row, std::span<float> out) const {
  constexpr double kPart = 0.1;  // of the old rows' deviation
  const Distribution& old = distributions_.at(name);
  const uint64_t key = random_key(seed_, "new row of " + name);
  const auto columns = static_cast<int64_t>(out.size());
  for (int64_t column = 0; column < columns; ++column) {
    const double z = random_normal(key, row * columns + column);
    out[column] = static_cast<float>(old.mean[column] + kPart * old.deviation[column] * z);
  }
}

void RemappedVocabulary::read_rows(const std::string& name, int64_t begin,
                                   std::span<float> out) const {
  if (!is_vocabulary_tensor(name)) return source_.read_rows(name, begin, out);
  const int64_t columns = info(name).row_size();
  const int64_t end = begin + static_cast<int64_t>(out.size()) / columns;
  for (int64_t row = begin, next; row < end; row = next) {
    next = row + 1;
    const int64_t first = rows_[row];
    // neighbours that are neighbours in the source are read at once
    while (next < end && first >= 0 && rows_[next] == first + next - row) ++next;
    const auto to = out.subspan((row - begin) * columns, (next - row) * columns);
    if (first >= 0) {
      source_.read_rows(name, first, to);
    } else if (first == kNewRow) {
      draw(name, row, to);
    } else {
      std::fill(to.begin(), to.end(), 0.0F);
    }
  }
}

}  // namespace mirabelle
