#include "mirabelle/kernels/top_k.h"

#include <algorithm>
#include <limits>

#include "cpu/check_indices.h"

namespace mirabelle::backend {
namespace {

constexpr int64_t kGroup = 64;  // scores compared with the threshold at a time
constexpr int64_t kMaxWaiting = 1024;

/// The k best so far, in order, in the caller's arrays, and a few that wait to be merged into them:
/// sorting those once costs less than inserting each. Nothing else is needed, even for k = 1000.
template <typename T>
class BestOf {
 public:
  BestOf(T* values, int32_t* indices, int64_t k)
      : values_(values), indices_(indices), k_(k), limit_(std::min(k, kMaxWaiting)) {}

  /// Scores [begin, end), at most kGroup, of the segment; groups come in order.
  void add(const T* scores, int64_t begin, int64_t end) {
    // A score equal to the last of a full list comes later, so it is no candidate.
    const T threshold = size_ == k_ ? values_[k_ - 1] : -std::numeric_limits<T>::infinity();
    if (!any_above(scores, begin, end, threshold)) return;
    for (int64_t i = begin; i < end; ++i) {
      waiting_[num_waiting_] = {scores[i], static_cast<int32_t>(i)};
      num_waiting_ += scores[i] > threshold;
    }
    if (num_waiting_ >= limit_) merge();
  }

  /// Merges what waits. The list has the first `num_kept` of its elements and `num_new` new ones
  /// afterwards; filling it from the back, no element is overwritten before it has moved.
  void merge() {
    std::sort(waiting_, waiting_ + num_waiting_, [](const Candidate& a, const Candidate& b) {
      return a.score > b.score || (a.score == b.score && a.index < b.index);
    });
    const int64_t merged = std::min(size_ + num_waiting_, k_);
    int64_t num_kept = 0, num_new = 0;
    while (num_kept + num_new < merged) {
      const bool keep = num_new == num_waiting_ ||
                        (num_kept < size_ && values_[num_kept] >= waiting_[num_new].score);
      ++(keep ? num_kept : num_new);
    }
    for (int64_t place = merged - 1; num_new > 0; --place) {
      if (num_kept > 0 && values_[num_kept - 1] < waiting_[num_new - 1].score) {
        --num_kept;
        values_[place] = values_[num_kept];
        indices_[place] = indices_[num_kept];
      } else {
        --num_new;
        values_[place] = waiting_[num_new].score;
        indices_[place] = waiting_[num_new].index;
      }
    }
    size_ = merged;
    num_waiting_ = 0;
  }

  int64_t size() const { return size_; }

 private:
  struct Candidate {
    T score;
    int32_t index;
  };

  static bool any_above(const T* scores, int64_t begin, int64_t end, T threshold) {
    T largest = threshold;
#pragma omp simd reduction(max : largest)
    for (int64_t i = begin; i < end; ++i) largest = scores[i] > largest ? scores[i] : largest;
    return largest > threshold;
  }

  T* values_;
  int32_t* indices_;
  int64_t k_, limit_;
  int64_t size_ = 0, num_waiting_ = 0;
  Candidate waiting_[kMaxWaiting + kGroup];
};

template <typename T>
void top_k(T* values, int32_t* indices, const T* scores, int64_t n, int64_t k, TopKOrder order) {
  BestOf<T> best(values, indices, k);
  for (int64_t begin = 0; begin < n; begin += kGroup) {
    best.add(scores, begin, std::min(begin + kGroup, n));
  }
  best.merge();
  if (order == TopKOrder::kByIndex) {
    std::sort(indices, indices + best.size());
    for (int64_t i = 0; i < best.size(); ++i) values[i] = scores[indices[i]];
  }
  std::fill(values + best.size(), values + k, -std::numeric_limits<T>::infinity());
  std::fill(indices + best.size(), indices + k, -1);
}

}  // namespace

template <Device D, typename T>
void segmented_top_k(T* values, int32_t* indices, const T* scores, const int32_t* sizes,
                     int64_t num_segments, int64_t max_size, int64_t k, TopKOrder order,
                     const Stream&) {
  check_index_range("sizes", sizes, num_segments, 0, max_size + 1);
  if (k == 0) return;
#pragma omp parallel for schedule(dynamic)
  for (int64_t segment = 0; segment < num_segments; ++segment) {
    top_k(values + segment * k, indices + segment * k, scores + segment * max_size, sizes[segment],
          k, order);
  }
}

#define INSTANTIATE(T)                                                                            \
  template void segmented_top_k<Device::kCpu, T>(T*, int32_t*, const T*, const int32_t*, int64_t, \
                                                 int64_t, int64_t, TopKOrder, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
