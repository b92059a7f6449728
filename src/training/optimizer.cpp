#include "mirabelle/training/optimizer.h"

#include "mirabelle/core/copy.h"
#include "mirabelle/core/profile_range.h"
#include "mirabelle/kernels/adamw.h"
#include "mirabelle/kernels/convert.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle {

Optimizer::Optimizer(const ParameterLayout& layout, const TrainingConfig& config, DType dtype,
                     Device device)
    : num_decayed_(layout.num_matrix_elements()),
      config_(config),
      exp_avg_({layout.num_elements()}, wide(dtype), device),
      exp_avg_sq_({layout.num_elements()}, wide(dtype), device),
      grad_squares_({1}, DType::kFloat64, device) {
  if (wide(dtype) != dtype) master_ = Buffer({layout.num_elements()}, wide(dtype), device);
}

void Optimizer::set_weights(const TensorView& weights, const TensorView& values,
                            const Stream& stream) {
  copy(master(weights), values, stream);
  round_weights(weights, stream);
}

void Optimizer::round_weights(const TensorView& weights, const Stream& stream) {
  if (master_.view()) round_to(weights, master_.view(), stream);
  stream.synchronize();
}

void Optimizer::update(const TensorView& weights, const TensorView& gradients, int64_t step,
                       double learning_rate, const Stream& stream) {
  const ProfileRange range("optimizer");
  sum_of_squares(grad_squares_.view(), gradients, stream);
  AdamWStep scalars;
  scalars.learning_rate = learning_rate;
  scalars.beta1 = config_.beta1;
  scalars.beta2 = config_.beta2;
  scalars.epsilon = config_.epsilon;
  scalars.step = step + 1;
  if (config_.max_grad_norm > 0) scalars.max_grad_norm = config_.max_grad_norm;
  auto update_range = [&](int64_t begin, int64_t end, double weight_decay) {
    scalars.weight_decay = weight_decay;
    adamw_update(weights.rows(begin, end),
                 master_.view() ? master_.view().rows(begin, end) : TensorView{},
                 exp_avg().rows(begin, end), exp_avg_sq().rows(begin, end),
                 gradients.rows(begin, end), grad_squares_.view(), scalars, stream);
  };
  update_range(0, num_decayed_, config_.weight_decay);
  update_range(num_decayed_, weights.num_elements(), 0);
}

}  // namespace mirabelle
