#include "mirabelle/kernels/adamw.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {

template <Device D, typename T>
void adamw_update(T* parameter, Wide<T>*, Wide<T>* exp_avg, Wide<T>* exp_avg_sq,
                  const Wide<T>* grad, const double* grad_squares, int64_t n, const AdamWStep& step,
                  const Stream&) {
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  const T beta1 = static_cast<T>(step.beta1), one_minus_beta1 = static_cast<T>(1 - step.beta1);
  const T beta2 = static_cast<T>(step.beta2), one_minus_beta2 = static_cast<T>(1 - step.beta2);
  const double norm = grad_squares ? std::sqrt(*grad_squares) : 0;
  const T grad_scale = static_cast<T>(norm > step.max_grad_norm ? step.max_grad_norm / norm : 1);
  const T epsilon = static_cast<T>(step.epsilon);
  const T step_size = static_cast<T>(step.learning_rate / correction1);
  const T inverse_correction2 = static_cast<T>(1 / correction2);
  const T decay = static_cast<T>(step.learning_rate * step.weight_decay);
  constexpr int64_t kBlock = 4096;  // fixed, so that no thread's share ends within a vector
#pragma omp parallel for schedule(static) if (n > kParallelThreshold)
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t end = std::min(n, first + kBlock);
#pragma omp simd
    for (int64_t i = first; i < end; ++i) {
      const T g = grad_scale * grad[i];
      const T m = beta1 * exp_avg[i] + one_minus_beta1 * g;
      const T v = beta2 * exp_avg_sq[i] + one_minus_beta2 * g * g;
      const T root = std::sqrt(v * inverse_correction2);
      parameter[i] -= step_size * m / (root + epsilon) + decay * parameter[i];
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
    }
  }
}

#define INSTANTIATE(T)                                                                          \
  template void adamw_update<Device::kCpu, T>(T*, T*, T*, T*, const T*, const double*, int64_t, \
                                              const AdamWStep&, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
