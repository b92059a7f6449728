#include "mirabelle/training/optimizer.h"

#include <cmath>

#include "mirabelle/kernels/adamw.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle {

Optimizer::Optimizer(const ParameterLayout& layout, const TrainingConfig& config, DType dtype,
                     Device device)
    : num_decayed_(layout.num_matrix_elements()),
      config_(config),
      exp_avg_({layout.num_elements()}, dtype, device),
      exp_avg_sq_({layout.num_elements()}, dtype, device) {}

double Optimizer::update(const TensorView& weights, const TensorView& gradients, int64_t step,
                         double learning_rate, const Stream& stream) {
  double squares = 0;
  sum_of_squares(view_of(&squares, {1}), gradients, stream);
  const double norm = std::sqrt(squares);

  AdamWStep scalars;
  scalars.learning_rate = learning_rate;
  scalars.beta1 = config_.beta1;
  scalars.beta2 = config_.beta2;
  scalars.epsilon = config_.epsilon;
  scalars.step = step + 1;
  const bool clips = config_.max_grad_norm > 0 && norm > config_.max_grad_norm;
  scalars.grad_scale = clips ? config_.max_grad_norm / norm : 1;
  auto update_range = [&](int64_t begin, int64_t end, double weight_decay) {
    scalars.weight_decay = weight_decay;
    adamw_update(weights.rows(begin, end), exp_avg().rows(begin, end),
                 exp_avg_sq().rows(begin, end), gradients.rows(begin, end), scalars, stream);
  };
  update_range(0, num_decayed_, config_.weight_decay);
  update_range(num_decayed_, weights.num_elements(), 0);
  return norm;
}

}  // namespace mirabelle
