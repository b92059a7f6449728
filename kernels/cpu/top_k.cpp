#include "mirabelle/kernels/top_k.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace mirabelle::backend {
namespace {

constexpr int64_t kGroup = 64;  // scores compared with the threshold at a time

/// The best so far, in order, in the caller's arrays. Once the list is full most scores fail its
/// last value, so the scan is what counts and a sorted list is as good as a heap, and it is the
/// result.
template <typename T>
struct SortedList {
  T* values;
  int32_t* indices;
  int64_t capacity;
  int64_t size = 0;

  bool full() const { return size == capacity; }

  void insert(T score, int32_t index) {
    // Behind its equals: they came earlier.
    const int64_t place =
        std::upper_bound(values, values + size, score, std::greater<T>()) - values;
    if (full()) --size;
    std::copy_backward(values + place, values + size, values + size + 1);
    std::copy_backward(indices + place, indices + size, indices + size + 1);
    values[place] = score;
    indices[place] = index;
    ++size;
  }
};

template <typename T>
void top_k(T* values, int32_t* indices, const T* scores, int64_t n, int64_t k) {
  SortedList<T> list{values, indices, k};
  const int64_t first = std::min(n, k);
  for (int64_t i = 0; i < first; ++i) list.insert(scores[i], static_cast<int32_t>(i));
  for (int64_t begin = first; begin < n; begin += kGroup) {
    const int64_t end = std::min(begin + kGroup, n);
    T largest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : largest)
    for (int64_t i = begin; i < end; ++i) largest = scores[i] > largest ? scores[i] : largest;
    if (!(largest > values[k - 1])) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (scores[i] > values[k - 1]) list.insert(scores[i], static_cast<int32_t>(i));
    }
  }
  std::fill(values + first, values + k, -std::numeric_limits<T>::infinity());
  std::fill(indices + first, indices + k, -1);
}

}  // namespace

template <Device D, typename T>
void segmented_top_k(T* values, int32_t* indices, const T* scores, const int32_t* offsets,
                     int64_t num_segments, int64_t k, const Stream&) {
  if (k == 0) return;
#pragma omp parallel for schedule(dynamic)
  for (int64_t segment = 0; segment < num_segments; ++segment) {
    top_k(values + segment * k, indices + segment * k, scores + offsets[segment],
          offsets[segment + 1] - offsets[segment], k);
  }
}

#define INSTANTIATE(T)                                                                            \
  template void segmented_top_k<Device::kCpu, T>(T*, int32_t*, const T*, const int32_t*, int64_t, \
                                                 int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
