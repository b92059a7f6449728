#include <cmath>

#include "cuda/clip_scale.cuh"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/adamw.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

/// The scalars as the kernel needs them.
struct Factors {
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float step_size, inverse_correction2, epsilon, decay, max_grad_norm;
  double max_good_norm;
};

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(T* parameter, float* master, float* exp_avg, float* exp_avg_sq, const float* grad,
                 const double* grad_squares, int64_t n, Factors f) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (first >= n || !is_good_norm(grad_squares, f.max_good_norm)) return;
  const float grad_scale = clip_scale(grad_squares, f.max_grad_norm);
  Vector x =
      master ? load_vector<kAligned>(master, first, n) : load_vector<kAligned>(parameter, first, n);
  Vector m = load_vector<kAligned>(exp_avg, first, n);
  Vector v = load_vector<kAligned>(exp_avg_sq, first, n);
  const Vector g = load_vector<kAligned>(grad, first, n);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float scaled = grad_scale * g.value[i];
    m.value[i] = f.beta1 * m.value[i] + f.one_minus_beta1 * scaled;
    v.value[i] = f.beta2 * v.value[i] + f.one_minus_beta2 * scaled * scaled;
    const float root = sqrtf(v.value[i] * f.inverse_correction2);
    x.value[i] -= f.step_size * m.value[i] / (root + f.epsilon) + f.decay * x.value[i];
  }
  store_vector<kAligned>(parameter, first, n, x);
  if (master) store_vector<kAligned>(master, first, n, x);
  store_vector<kAligned>(exp_avg, first, n, m);
  store_vector<kAligned>(exp_avg_sq, first, n, v);
}

}  // namespace

template <Device D, typename T>
void adamw_update(T* parameter, Wide<T>* master, Wide<T>* exp_avg, Wide<T>* exp_avg_sq,
                  const Wide<T>* grad, const double* grad_squares, int64_t n, const AdamWStep& step,
                  const Stream& stream) {
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  const Factors factors = {static_cast<float>(step.beta1),
                           static_cast<float>(1 - step.beta1),
                           static_cast<float>(step.beta2),
                           static_cast<float>(1 - step.beta2),
                           static_cast<float>(step.learning_rate / correction1),
                           static_cast<float>(1 / correction2),
                           static_cast<float>(step.epsilon),
                           static_cast<float>(step.learning_rate * step.weight_decay),
                           static_cast<float>(step.max_grad_norm),
                           step.max_good_norm};
  split_by_alignment(
      n, {parameter, master, exp_avg, exp_avg_sq, grad},
      [&]<bool kAligned>(int64_t begin, int64_t end) {
        const int64_t num_vectors = ceil_div(end - begin, kVector);
        adamw_kernel<kAligned><<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
            parameter + begin, master ? master + begin : nullptr, exp_avg + begin,
            exp_avg_sq + begin, grad + begin, grad_squares, end - begin, factors);
        CUDA_CHECK(cudaGetLastError());
      });
}

#define INSTANTIATE(T)                                                                   \
  template void adamw_update<Device::kCuda, T>(T*, float*, float*, float*, const float*, \
                                               const double*, int64_t, const AdamWStep&, \
                                               const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
