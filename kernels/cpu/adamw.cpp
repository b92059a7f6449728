#include "mirabelle/kernels/adamw.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cpu/clip_scale.h"
#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {

template <Device D, typename T>
void adamw_update(T* parameter, Wide<T>* master, Wide<T>* exp_avg, Wide<T>* exp_avg_sq,
                  const Wide<T>* grad, const double* grad_squares, int64_t n, const AdamWStep& step,
                  const Stream&) {
  if (!is_good_norm(grad_squares, step.max_good_norm)) return;
  using W = Wide<T>;
  constexpr bool kHasMaster = !std::is_same_v<T, W>;
  W* weight;  // what is updated
  if constexpr (kHasMaster) {
    weight = master;
  } else {
    weight = parameter;
  }
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  const W beta1 = static_cast<W>(step.beta1), one_minus_beta1 = static_cast<W>(1 - step.beta1);
  const W beta2 = static_cast<W>(step.beta2), one_minus_beta2 = static_cast<W>(1 - step.beta2);
  const W grad_scale = static_cast<W>(clip_scale(grad_squares, step.max_grad_norm));
  const W epsilon = static_cast<W>(step.epsilon);
  const W step_size = static_cast<W>(step.learning_rate / correction1);
  const W inverse_correction2 = static_cast<W>(1 / correction2);
  const W decay = static_cast<W>(step.learning_rate * step.weight_decay);
  constexpr int64_t kBlock = 4096;  // fixed, so that no thread's share ends within a vector
#pragma omp parallel for schedule(static) if (n > kParallelThreshold)
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t end = std::min(n, first + kBlock);
#pragma omp simd
    for (int64_t i = first; i < end; ++i) {
      const W g = grad_scale * grad[i];
      const W m = beta1 * exp_avg[i] + one_minus_beta1 * g;
      const W v = beta2 * exp_avg_sq[i] + one_minus_beta2 * g * g;
      const W root = std::sqrt(v * inverse_correction2);
      weight[i] -= step_size * m / (root + epsilon) + decay * weight[i];
      if constexpr (kHasMaster) parameter[i] = T(weight[i]);
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
    }
  }
}

#define INSTANTIATE(T)                                                                          \
  template void adamw_update<Device::kCpu, T>(T*, Wide<T>*, Wide<T>*, Wide<T>*, const Wide<T>*, \
                                              const double*, int64_t, const AdamWStep&,         \
                                              const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
