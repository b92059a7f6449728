#include "mirabelle/tokenizer/contrastive_loss.h"

#include <algorithm>
#include <cmath>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/dispatch.h"
#include "mirabelle/kernels/contrastive.h"
#include "mirabelle/kernels/cross_entropy.h"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/kernels/rms_norm.h"

namespace mirabelle {
namespace {

constexpr double kEpsilon = 1e-12;  // of a mean square: a row of zeros stays one

Buffer constant_row(int64_t size, double value, DType dtype, Device device) {
  Buffer row({size}, dtype, device);
  dispatch<float>(Device::kCpu, dtype, [&]<Device, typename T>() {
    const std::vector<T> values(size, static_cast<T>(value));
    const Stream stream(device);
    copy(row.view(), view_of(values), stream);
    stream.synchronize();
  });
  return row;
}

}  // namespace

ContrastiveLoss::ContrastiveLoss(const RqVaeConfig& config, int64_t part_rows, DType dtype,
                                 Device device, const Communicator& communicator)
    : own_parts_(config.parts / communicator.size()),
      first_part_(own_parts_ * communicator.rank()),
      part_rows_(part_rows),
      temperature_(config.contrastive_temperature),
      is_cosine_(config.contrastive_similarity == "cosine"),
      communicator_(communicator) {
  MIRABELLE_CHECK(config.parts % communicator.size() == 0, communicator.size(),
                  " ranks do not divide ", config.parts, " parts");
  const int64_t size = config.contrastive_size, rows = config.parts * part_rows;
  const int64_t own_rows = own_parts_ * part_rows;
  const auto make = [&](const Shape& shape) { return Buffer(shape, dtype, device); };
  partners_ = Buffer({rows}, DType::kInt32, device);
  scale_ = Buffer({1}, DType::kFloat64, device);
  losses_ = Buffer({own_parts_}, DType::kFloat64, device);
  all_u_ = make({rows, size});
  logits_ = make({part_rows, rows});
  row_losses_ = make({part_rows});
  grad_columns_by_part_ = make({own_parts_, rows, size});
  grad_columns_ = make({rows, size});
  if (!is_cosine_) return;
  u_ = make({own_rows, size});
  grad_u_ = make({own_rows, size});
  norm_weight_ = constant_row(size, 1 / std::sqrt(static_cast<double>(size)), dtype, device);
  grad_norm_weight_ = make({size});
  rstd_ = make({own_rows});
  norm_workspace_ = make({num_token_chunks(own_rows), size});
}

void ContrastiveLoss::differentiate(const TensorView& grad_h, const TensorView& h,
                                    const std::vector<int32_t>& partners, double weight,
                                    const Stream& stream) {
  const auto num_anchors =
      std::count_if(partners.begin(), partners.end(), [](int32_t row) { return row >= 0; });
  // of the mean, with respect to products that are yet to be divided by the temperature
  const double scale =
      weight / temperature_ / static_cast<double>(std::max<int64_t>(1, num_anchors));
  copy(partners_.view(), view_of(partners), stream);
  copy(scale_.view(), view_of(&scale, {1}), stream);

  const int64_t first_row = first_part_ * part_rows_, own_rows = own_parts_ * part_rows_;
  const auto flat = [](const TensorView& x) { return x.reshaped({x.num_elements()}); };
  const TensorView& u = is_cosine_ ? u_.view() : h;
  const TensorView& grad_u = is_cosine_ ? grad_u_.view() : grad_h;
  if (is_cosine_) {
    residual_rms_norm_forward(u, {}, rstd_.view(), h, {}, norm_weight_.view(), kEpsilon, {},
                              stream);
  }
  communicator_.all_gather(flat(all_u_.view()), flat(u), stream);
  fill_zero(losses_.view(), stream);
  // A row meets others as the one that is classified, in its own part, and as a column of all.
  for (int64_t part = 0; part < own_parts_; ++part) {
    const int64_t begin = part * part_rows_, end = begin + part_rows_;
    const TensorView& logits = logits_.view();
    matmul(logits, u.rows(begin, end), false, all_u_.view(), true, Accumulate::kNo, stream);
    contrastive_logits(logits, partners_.view(), first_row + begin, temperature_, stream);
    softmax_cross_entropy(row_losses_.view(), logits,
                          partners_.view().rows(first_row + begin, first_row + end), scale_.view(),
                          {}, stream);
    add_sum(losses_.view().rows(part, part + 1), row_losses_.view(), stream);
    matmul(grad_u.rows(begin, end), logits, false, all_u_.view(), false, Accumulate::kNo, stream);
    matmul(grad_columns_by_part_.view().slice(part), logits, true, u.rows(begin, end), false,
           Accumulate::kNo, stream);
  }
  tree_sum(grad_columns_.view(), grad_columns_by_part_.view(), stream);
  communicator_.all_reduce(grad_columns_.view(), ReduceOp::kSum, stream);
  add(grad_u, grad_columns_.view().rows(first_row, first_row + own_rows), stream);
  if (!is_cosine_) return;
  fill_zero(grad_h, stream);
  residual_rms_norm_backward(grad_h, {}, grad_norm_weight_.view(), grad_u, h, rstd_.view(),
                             norm_weight_.view(), {}, norm_workspace_.view(), stream);
}

}  // namespace mirabelle
