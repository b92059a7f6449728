#include "mirabelle/tokenizer/item_rows.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

namespace mirabelle {
namespace {

class Buffer {
 public:
  Buffer(ItemRows rows, int64_t window_items, int64_t kept_bytes)
      : rows_(std::move(rows)),
        keeps_all_(rows_.num_items <= window_items ||
                   rows_.num_items * rows_.dim * static_cast<int64_t>(sizeof(float)) <= kept_bytes),
        window_items_(keeps_all_ ? rows_.num_items : window_items) {}

  void read(int64_t begin, int64_t end, float* out) {
    const bool goes_on = begin == next_ && end - begin < window_items_;
    next_ = end;
    if (!contains(begin, end)) {
      if (!keeps_all_ && !goes_on) return rows_.read(begin, end, out);
      fill(keeps_all_ ? 0 : begin);
    }
    const float* first = values_.data() + (begin - begin_) * rows_.dim;
    std::copy_n(first, (end - begin) * rows_.dim, out);
  }

 private:
  bool contains(int64_t begin, int64_t end) const { return begin_ <= begin && end <= end_; }
  void fill(int64_t begin) {
    begin_ = begin;
    end_ = std::min(rows_.num_items, begin + window_items_);
    values_.resize((end_ - begin_) * rows_.dim);
    rows_.read(begin_, end_, values_.data());
  }

  const ItemRows rows_;
  const bool keeps_all_;
  const int64_t window_items_;
  int64_t next_ = -1;            // where a read in order would begin
  int64_t begin_ = 0, end_ = 0;  // the rows that are held
  std::vector<float> values_;
};

}  // namespace

ItemRows buffered_rows(ItemRows rows, int64_t window_items, int64_t kept_bytes) {
  const int64_t num_items = rows.num_items, dim = rows.dim;
  const auto buffer = std::make_shared<Buffer>(std::move(rows), window_items, kept_bytes);
  return {num_items, dim,
          [buffer](int64_t begin, int64_t end, float* out) { buffer->read(begin, end, out); }};
}

}  // namespace mirabelle
