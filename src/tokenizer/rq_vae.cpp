#include "mirabelle/tokenizer/rq_vae.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/kernels/bias_silu.h"
#include "mirabelle/kernels/codebook_training.h"
#include "mirabelle/kernels/embedding.h"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/kernels/nearest_code.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/kernels/squared_error.h"

namespace mirabelle {
namespace {

TensorView shape_only(const Shape& shape) { return {nullptr, shape}; }

/// Layers from sizes[0] features to sizes[1], sizes[2], ...
RqVaeTensors::Mlp mlp_shapes(const std::vector<int64_t>& sizes) {
  RqVaeTensors::Mlp mlp;
  for (size_t layer = 1; layer < sizes.size(); ++layer) {
    const bool is_last = layer + 1 == sizes.size();
    mlp.push_back({shape_only({sizes[layer], sizes[layer - 1]}),
                   is_last ? TensorView() : shape_only({sizes[layer]})});
  }
  return mlp;
}

RqVaeTensors tensor_shapes(const std::vector<FeatureSource>& sources,
                           const std::vector<int64_t>& levels, const RqVaeConfig& config) {
  RqVaeTensors tensors;
  for (const FeatureSource& source : sources) {
    std::vector<int64_t> sizes = {source.dim};
    sizes.insert(sizes.end(), config.hidden_sizes.begin(), config.hidden_sizes.end());
    sizes.push_back(config.source_size);
    tensors.encoders.push_back(mlp_shapes(sizes));
    tensors.projections.push_back(shape_only({config.codebook_dim, config.source_size}));
    sizes = {config.codebook_dim};
    sizes.insert(sizes.end(), config.hidden_sizes.rbegin(), config.hidden_sizes.rend());
    sizes.push_back(source.dim);
    tensors.decoders.push_back(mlp_shapes(sizes));
  }
  if (config.contrastive_weight > 0) {
    const int64_t size = config.contrastive_size;
    tensors.head = mlp_shapes({config.codebook_dim, size, size});
  }
  for (const int64_t size : levels) {
    tensors.codebooks.push_back(shape_only({size, config.codebook_dim}));
  }
  return tensors;
}

struct NamedView {
  std::string name;
  TensorView* view;
};

std::vector<NamedView> matrices_of(RqVaeTensors& tensors) {
  std::vector<NamedView> result;
  const auto add = [&](const std::string& name, RqVaeTensors::Mlp& mlp) {
    for (size_t layer = 0; layer < mlp.size(); ++layer) {
      result.push_back({name + "." + std::to_string(layer) + ".weight", &mlp[layer].weight});
    }
  };
  for (size_t m = 0; m < tensors.encoders.size(); ++m) {
    const std::string source = std::to_string(m);
    add("encoders." + source, tensors.encoders[m]);
    result.push_back({"projections." + source, &tensors.projections[m]});
    add("decoders." + source, tensors.decoders[m]);
  }
  add("head", tensors.head);
  return result;
}

std::vector<NamedView> biases_of(RqVaeTensors& tensors) {
  std::vector<NamedView> result;
  const auto add = [&](const std::string& name, RqVaeTensors::Mlp& mlp) {
    for (size_t layer = 0; layer + 1 < mlp.size(); ++layer) {
      result.push_back({name + "." + std::to_string(layer) + ".bias", &mlp[layer].bias});
    }
  };
  for (size_t m = 0; m < tensors.encoders.size(); ++m) {
    add("encoders." + std::to_string(m), tensors.encoders[m]);
    add("decoders." + std::to_string(m), tensors.decoders[m]);
  }
  add("head", tensors.head);
  return result;
}

std::vector<NamedView> codebooks_of(RqVaeTensors& tensors) {
  std::vector<NamedView> result;
  for (size_t level = 0; level < tensors.codebooks.size(); ++level) {
    result.push_back({"codebooks." + std::to_string(level), &tensors.codebooks[level]});
  }
  return result;
}

std::vector<NamedView> all_of(RqVaeTensors& tensors) {
  std::vector<NamedView> result = matrices_of(tensors);
  for (const auto& more : {biases_of(tensors), codebooks_of(tensors)}) {
    result.insert(result.end(), more.begin(), more.end());
  }
  return result;
}

/// Of normal numbers, so that features of deviation 1 make latents of length 1, which is the size
/// of the reconstruction loss too, and these reconstructions of deviation 1. A silu halves squares.
double initial_deviation(const RqVaeLayout::Tensor& tensor, int64_t num_sources) {
  const double num_inputs = static_cast<double>(tensor.shape[1]);
  if (tensor.name.starts_with("codebooks")) return std::sqrt(1 / num_inputs);
  if (tensor.name.starts_with("projections")) {
    const double num_outputs = static_cast<double>(tensor.shape[0] * num_sources);
    return std::sqrt(1 / (num_inputs * num_outputs));
  }
  if (!tensor.name.ends_with(".0.weight")) return std::sqrt(2 / num_inputs);
  return tensor.name.starts_with("encoders") ? std::sqrt(1 / num_inputs) : 1;
}

std::vector<TensorView> rows_of(const std::vector<TensorView>& tensors, int64_t end) {
  std::vector<TensorView> result;
  for (const TensorView& tensor : tensors) result.push_back(tensor.rows(0, end));
  return result;
}

}  // namespace

// --- the layout -------------------------------------------------------------------------------

RqVaeLayout::RqVaeLayout(const std::vector<FeatureSource>& sources,
                         const std::vector<int64_t>& levels, const RqVaeConfig& config)
    : shapes_(tensor_shapes(sources, levels, config)) {
  constexpr int64_t kMultiple = 16;
  const auto add = [&](const std::vector<NamedView>& views) {
    for (const NamedView& named : views) {
      const Shape& shape = named.view->shape;
      tensors_.push_back({named.name, shape, num_elements_});
      num_elements_ += (shape.num_elements() + kMultiple - 1) / kMultiple * kMultiple;
    }
  };
  add(matrices_of(shapes_));
  biases_begin_ = num_elements_;
  add(biases_of(shapes_));
  codebooks_begin_ = num_elements_;
  add(codebooks_of(shapes_));
}

RqVaeTensors RqVaeLayout::view(const TensorView& flat) const {
  MIRABELLE_CHECK(flat.shape == Shape{num_elements_}, "the flat array has shape ", flat.shape,
                  ", wanted [", num_elements_, "]");
  RqVaeTensors tensors = shapes_;
  const std::vector<NamedView> views = all_of(tensors);
  for (size_t i = 0; i < views.size(); ++i) {
    const auto& [name, shape, offset] = tensors_[i];
    *views[i].view = flat.rows(offset, offset + shape.num_elements()).reshaped(shape);
  }
  return tensors;
}

// --- the model --------------------------------------------------------------------------------

RqVae::RqVae(const std::vector<FeatureSource>& sources, const std::vector<int64_t>& levels,
             const RqVaeConfig& config, Device device, DType dtype)
    : config_(config),
      sources_(sources),
      levels_(levels),
      layout_(sources, levels, config),
      weights_({layout_.num_elements()}, dtype, device),
      tensors_(layout_.view(weights_.view())) {}

void RqVae::initialize(int64_t seed) {
  std::vector<float> flat(layout_.num_elements());
  for (const RqVaeLayout::Tensor& tensor : layout_.tensors()) {
    if (tensor.shape.rank() < 2) continue;
    const uint64_t key = random_key(static_cast<uint64_t>(seed), "rq_vae " + tensor.name);
    const double deviation = initial_deviation(tensor, static_cast<int64_t>(sources_.size()));
    for (int64_t i = 0; i < tensor.shape.num_elements(); ++i) {
      flat[tensor.offset + i] = static_cast<float>(deviation * random_normal(key, i));
    }
  }
  const Stream stream(weights_.view().device);
  copy(weights_.view(), view_of(flat), stream);
  stream.synchronize();
}

int64_t RqVae::feature_dim() const {
  return std::accumulate(sources_.begin(), sources_.end(), int64_t{0},
                         [](int64_t sum, const FeatureSource& source) { return sum + source.dim; });
}

double reconstruction_weight(const FeatureSource& source) {
  return source.weight * source.weight / static_cast<double>(source.dim);
}

// --- a pass -----------------------------------------------------------------------------------

RqVaePass::RqVaePass(const RqVae& model, int64_t num_rows, int64_t num_items)
    : model_(model), num_rows_(num_rows), num_items_(num_items) {
  const DType dtype = model.weights().dtype;
  const RqVaeTensors& tensors = model.tensors();
  const int64_t dim = model.config().codebook_dim, num_levels = model.num_levels();
  for (size_t m = 0; m < model.sources().size(); ++m) {
    encoders_.push_back(allocate(tensors.encoders[m], num_rows));
    decoders_.push_back(allocate(tensors.decoders[m], num_items));
    encoded_.push_back(allocate({num_rows, model.config().source_size}, dtype));
    reconstruction_.push_back(allocate({num_items, model.sources()[m].dim}, dtype));
  }
  if (!tensors.head.empty()) {
    head_ = allocate(tensors.head, num_rows);
    head_output_ = allocate({num_rows, model.config().contrastive_size}, dtype);
  }
  const int64_t most_codes = *std::max_element(model.levels().begin(), model.levels().end());
  residuals_ = allocate({num_levels + 1, num_rows, dim}, dtype);
  codes_ = allocate({num_levels, num_rows}, DType::kInt32);
  quantized_ = allocate({num_rows, dim}, dtype);
  losses_ = allocate({static_cast<int64_t>(model.sources().size()) + num_levels}, DType::kFloat64);
  grad_latent_ = allocate({num_rows, dim}, dtype);
  grad_code_ = allocate({num_items, dim}, dtype);
  item_losses_ = allocate({num_items}, dtype);
  distances_ = allocate({(num_rows + 1) * most_codes}, dtype);
}

TensorView RqVaePass::allocate(const Shape& shape, DType dtype) {
  return memory_.emplace_back(shape, dtype, model_.weights().device).view();
}

RqVaePass::MlpMemory RqVaePass::allocate(const RqVaeTensors::Mlp& mlp, int64_t num_rows) {
  MlpMemory memory;
  for (size_t layer = 0; layer + 1 < mlp.size(); ++layer) {
    const Shape shape{num_rows, mlp[layer].weight.shape[0]};
    memory.products.push_back(allocate(shape, model_.weights().dtype));
    memory.activations.push_back(allocate(shape, model_.weights().dtype));
  }
  return memory;
}

void RqVaePass::forward(const TensorView& out, const TensorView& x, const RqVaeTensors::Mlp& mlp,
                        const MlpMemory& memory, const Stream& stream) {
  TensorView input = x;
  for (size_t layer = 0; layer + 1 < mlp.size(); ++layer) {
    linear_forward(memory.products[layer], input, mlp[layer].weight, stream);
    input = memory.activations[layer];
    bias_silu_forward(input, memory.products[layer], mlp[layer].bias, stream);
  }
  linear_forward(out, input, mlp.back().weight, stream);
}

/// The gradients of activations and products take the place of both.
void RqVaePass::backward(const TensorView& grad_x, bool accumulate,
                         const RqVaeTensors::Mlp& gradients, const TensorView& grad_out,
                         const TensorView& x, const RqVaeTensors::Mlp& mlp, const MlpMemory& memory,
                         const Stream& stream) {
  TensorView grad = grad_out;
  for (size_t layer = mlp.size() - 1; layer > 0; --layer) {
    const TensorView& activation = memory.activations[layer - 1];
    const TensorView& product = memory.products[layer - 1];
    linear_backward_weight(gradients[layer].weight, grad, activation, stream);
    linear_backward_input(activation, grad, mlp[layer].weight, Accumulate::kNo, stream);
    bias_silu_backward(product, gradients[layer - 1].bias, activation, product, mlp[layer - 1].bias,
                       stream);
    grad = product;
  }
  linear_backward_weight(gradients[0].weight, grad, x, stream);
  if (!grad_x) return;
  linear_backward_input(grad_x, grad, mlp[0].weight,
                        accumulate ? Accumulate::kYes : Accumulate::kNo, stream);
}

void RqVaePass::encode(const std::vector<TensorView>& x, const Stream& stream) {
  const RqVaeTensors& tensors = model_.tensors();
  for (size_t m = 0; m < x.size(); ++m) {
    forward(encoded_[m], x[m], tensors.encoders[m], encoders_[m], stream);
    matmul(residuals_.slice(0), encoded_[m], false, tensors.projections[m], true,
           m == 0 ? Accumulate::kNo : Accumulate::kYes, stream);
  }
  for (int64_t level = 0; level < model_.num_levels(); ++level) {
    const TensorView &codebook = tensors.codebooks[level], codes = codes_.slice(level);
    const TensorView residual = residuals_.slice(level), left = residuals_.slice(level + 1);
    nearest_code(codes, residual, codebook, distances_.rows(0, (num_rows_ + 1) * codebook.shape[0]),
                 stream);
    copy(left, residual, stream);
    subtract_code(left, codes, codebook, stream);
  }
}

void RqVaePass::decode(const TensorView& num_kept, const Stream& stream) {
  const RqVaeTensors& tensors = model_.tensors();
  sum_kept_codes(quantized_, residuals_, num_kept, stream);
  for (size_t m = 0; m < decoders_.size(); ++m) {
    forward(reconstruction_[m], quantized_.rows(0, num_items_), tensors.decoders[m], decoders_[m],
            stream);
  }
  if (head_output_) forward(head_output_, quantized_, tensors.head, head_, stream);
}

void RqVaePass::backward(const RqVaeTensors& gradients, const std::vector<TensorView>& x,
                         const TensorView& grad_head, const LossScales& scales,
                         const Stream& stream) {
  fill_zero(losses_, stream);
  backward_decoders(gradients, x, grad_head, scales.reconstruction, stream);
  backward_quantizer(gradients, scales, stream);
  backward_encoders(gradients, x, stream);
}

/// To grad_latent_ of q.
void RqVaePass::backward_decoders(const RqVaeTensors& gradients, const std::vector<TensorView>& x,
                                  const TensorView& grad_head, double scale, const Stream& stream) {
  const RqVaeTensors& tensors = model_.tensors();
  const std::vector<TensorView> items = rows_of(x, num_items_);
  fill_zero(grad_latent_, stream);
  for (size_t m = 0; m < decoders_.size(); ++m) {
    squared_error(item_losses_, reconstruction_[m], items[m],
                  scale * reconstruction_weight(model_.sources()[m]), stream);
    const int64_t source = static_cast<int64_t>(m);
    add_sum(losses_.rows(source, source + 1), item_losses_, stream);
    backward(grad_latent_.rows(0, num_items_), /*accumulate=*/true, gradients.decoders[m],
             reconstruction_[m], quantized_.rows(0, num_items_), tensors.decoders[m], decoders_[m],
             stream);
  }
  if (!grad_head) return;
  backward(grad_latent_, /*accumulate=*/true, gradients.head, grad_head, quantized_, tensors.head,
           head_, stream);
}

/// From grad_latent_ of q to that of z. What a level leaves is r_l - e_l, of which both the
/// codebook's and the commitment's gradients are multiples.
void RqVaePass::backward_quantizer(const RqVaeTensors& gradients, const LossScales& scales,
                                   const Stream& stream) {
  if (model_.config().gradient_estimator == "rotation") {
    rotation_backward(grad_latent_, grad_latent_, residuals_.slice(0), quantized_, stream);
  }
  const int64_t num_sources = static_cast<int64_t>(model_.sources().size());
  for (int64_t level = 0; level < model_.num_levels(); ++level) {
    const TensorView left = residuals_.slice(level + 1).rows(0, num_items_);
    sum_of_squares(losses_.rows(num_sources + level, num_sources + level + 1), left, stream);
    scale_by(grad_latent_.rows(0, num_items_), left, 2 * scales.commitment, Accumulate::kYes,
             stream);
    scale_by(grad_code_, left, -2 * scales.codebook, Accumulate::kNo, stream);
    embedding_backward(gradients.codebooks[level], grad_code_,
                       codes_.slice(level).rows(0, num_items_), 0, {}, stream);
  }
}

void RqVaePass::backward_encoders(const RqVaeTensors& gradients, const std::vector<TensorView>& x,
                                  const Stream& stream) {
  const RqVaeTensors& tensors = model_.tensors();
  for (size_t m = 0; m < x.size(); ++m) {
    linear_backward_weight(gradients.projections[m], grad_latent_, encoded_[m], stream);
    linear_backward_input(encoded_[m], grad_latent_, tensors.projections[m], Accumulate::kNo,
                          stream);
    backward(TensorView(), /*accumulate=*/false, gradients.encoders[m], encoded_[m], x[m],
             tensors.encoders[m], encoders_[m], stream);
  }
}

// --- rows of items ----------------------------------------------------------------------------

SourceRows::SourceRows(const std::vector<FeatureSource>& sources, int64_t num_rows, Device device) {
  for (const FeatureSource& source : sources) {
    const Shape shape{num_rows, source.dim};
    device_.emplace_back(shape, DType::kFloat32, device);
    factors_.push_back(static_cast<float>(1 / std::sqrt(reconstruction_weight(source))));
    if (device != Device::kCpu) pinned_.push_back(Buffer::pinned(shape, DType::kFloat32));
  }
}

void SourceRows::set(int64_t row, const float* features) {
  uploaded_.synchronize();
  size_t m = 0;
  for (const Buffer& source : pinned_.empty() ? device_ : pinned_) {
    const TensorView& matrix = source.view();
    const int64_t dim = matrix.shape[1];
    const float factor = factors_[m++];
    float* to = matrix.as<float>() + row * dim;
    for (int64_t j = 0; j < dim; ++j) to[j] = factor * features[j];
    features += dim;
  }
}

void SourceRows::upload(const Stream& stream) {
  for (size_t m = 0; m < pinned_.size(); ++m) {
    copy(device_[m].view(), pinned_[m].view(), stream);
  }
  uploaded_.record(stream);
}

std::vector<TensorView> SourceRows::rows(int64_t begin, int64_t end) const {
  std::vector<TensorView> result;
  for (const Buffer& source : device_) result.push_back(source.view().rows(begin, end));
  return result;
}

// --- whole catalogues -------------------------------------------------------------------------

RqVaeEncoder::RqVaeEncoder(const RqVae& model, int64_t batch_items)
    : model_(model),
      batch_items_(batch_items),
      stream_(model.weights().device),
      input_(model.sources(), batch_items, model.weights().device),
      pass_(model, batch_items, 0),
      features_(batch_items * model.feature_dim()) {}

void RqVaeEncoder::encode(int32_t* codes, float* z, const ItemRows& rows, int64_t begin,
                          int64_t end) {
  const int64_t dim = model_.config().codebook_dim, num_levels = model_.num_levels();
  for (int64_t first = begin; first < end; first += batch_items_) {
    // The rows of a last, shorter batch that are left over are those of the batch before.
    const int64_t n = std::min(batch_items_, end - first);
    rows.read(first, first + n, features_.data());
    for (int64_t i = 0; i < n; ++i) input_.set(i, features_.data() + i * rows.dim);
    input_.upload(stream_);
    pass_.encode(input_.rows(0, batch_items_), stream_);
    if (codes) {
      const TensorView host = on_host(pass_.codes(), host_codes_, stream_);
      for (int64_t level = 0; level < num_levels; ++level) {
        const int32_t* of_level = host.slice(level).as<int32_t>();
        for (int64_t i = 0; i < n; ++i) {
          codes[(first - begin + i) * num_levels + level] = of_level[i];
        }
      }
    }
    if (z) {
      const TensorView host = on_host(pass_.residuals().slice(0), host_latents_, stream_);
      std::copy_n(host.as<float>(), n * dim, z + (first - begin) * dim);
    }
  }
}

ItemRows latent_rows(std::shared_ptr<const RqVae> model, ItemRows features, int64_t batch_items) {
  const int64_t num_items = features.num_items, dim = model->config().codebook_dim;
  const auto encoder = std::make_shared<RqVaeEncoder>(*model, std::min(num_items, batch_items));
  const auto read = [model = std::move(model), encoder, features = std::move(features)](
                        int64_t begin, int64_t end, float* out) {
    encoder->encode(nullptr, out, features, begin, end);
  };
  return {num_items, dim, read};
}

std::shared_ptr<const RqVae> on_host(const RqVae& model) {
  const auto result =
      std::make_shared<RqVae>(model.sources(), model.levels(), model.config(), Device::kCpu);
  const Stream stream(model.weights().device);
  copy(result->weights(), model.weights(), stream);
  stream.synchronize();
  return result;
}

std::vector<Codebook> codebooks_of(const RqVae& model) {
  const auto host = on_host(model);
  std::vector<Codebook> codebooks;
  for (const TensorView& rows : host->tensors().codebooks) {
    const float* values = rows.as<float>();
    codebooks.push_back(
        {rows.shape[0], rows.shape[1], {values, values + rows.shape.num_elements()}});
  }
  return codebooks;
}

}  // namespace mirabelle
