#include "mirabelle/kernels/muon.h"

#include <algorithm>
#include <type_traits>

#include "cpu/clip_scale.h"
#include "cpu/parallel_threshold.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle::backend {
namespace {

/// body(i) for all i below n, in parallel.
template <typename Body>
void for_each_element(int64_t n, Body body) {
  constexpr int64_t kBlock = 4096;  // fixed, so that no thread's share ends within a vector
#pragma omp parallel for schedule(static) if (n > kParallelThreshold)
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t end = std::min(n, first + kBlock);
#pragma omp simd
    for (int64_t i = first; i < end; ++i) body(i);
  }
}

}  // namespace

template <Device D, typename W>
void muon_momentum(W* direction, W* exp_avg, const W* grad, const double* grad_squares, int64_t n,
                   const MuonStep& step, const Stream&) {
  if (!is_good_norm(grad_squares, step.max_good_norm)) {
    std::fill_n(direction, n, W(0));
    return;
  }
  const W momentum = static_cast<W>(step.momentum);
  const W grad_scale = static_cast<W>(clip_scale(grad_squares, step.max_grad_norm));
  for_each_element(n, [=](int64_t i) {
    const W g = grad_scale * grad[i];
    exp_avg[i] = momentum * exp_avg[i] + g;
    direction[i] = g + momentum * exp_avg[i];
  });
}

template <Device D, typename W>
void normalise_rows(W* out, const W* x, int64_t count, int64_t n, const Stream& stream) {
  for (int64_t row = 0; row < count; ++row, out += n, x += n) {
    double squares;
    sum_of_squares<D>(&squares, x, n, stream);
    const double inverse = squares > 0 ? 1 / std::sqrt(squares) : 0;
    for_each_element(n, [=](int64_t i) { out[i] = static_cast<W>(x[i] * inverse); });
  }
}

template <Device D, typename W>
void quadratic(W* square, const W* gram, int64_t count, int64_t k, double a, double b, double c,
               const Stream&) {
  const W linear = static_cast<W>(b), second = static_cast<W>(c);
  for_each_element(count * k * k,
                   [=](int64_t i) { square[i] = linear * gram[i] + second * square[i]; });
  for (int64_t row = 0; row < count * k; ++row) square[row * k + row % k] += static_cast<W>(a);
}

template <Device D, typename T>
void muon_update(T* parameter, Wide<T>* master, const Wide<T>* direction,
                 const double* grad_squares, int64_t n, double scale, const MuonStep& step,
                 const Stream&) {
  if (!is_good_norm(grad_squares, step.max_good_norm)) return;
  using W = Wide<T>;
  const W step_size = static_cast<W>(step.learning_rate * scale);
  const W decay = static_cast<W>(step.learning_rate * step.weight_decay);
  for_each_element(n, [=](int64_t i) {
    if constexpr (std::is_same_v<T, W>) {
      parameter[i] -= step_size * direction[i] + decay * parameter[i];
    } else {
      master[i] -= step_size * direction[i] + decay * master[i];
      parameter[i] = T(master[i]);
    }
  });
}

#define INSTANTIATE_WIDE(W)                                                                     \
  template void muon_momentum<Device::kCpu>(W*, W*, const W*, const double*, int64_t,           \
                                            const MuonStep&, const Stream&);                    \
  template void normalise_rows<Device::kCpu>(W*, const W*, int64_t, int64_t, const Stream&);    \
  template void quadratic<Device::kCpu>(W*, const W*, int64_t, int64_t, double, double, double, \
                                        const Stream&);
INSTANTIATE_WIDE(float)
INSTANTIATE_WIDE(double)
#undef INSTANTIATE_WIDE
#define INSTANTIATE(T)                                                                             \
  template void muon_update<Device::kCpu, T>(T*, Wide<T>*, const Wide<T>*, const double*, int64_t, \
                                             double, const MuonStep&, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
