#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/stream.h"
#include "mirabelle/tokenizer/item_rows.h"
#include "mirabelle/tokenizer/residual_quantizer.h"
#include "mirabelle/tokenizer/rq_vae_config.h"

namespace mirabelle {

/// What to do about an RQ-VAE that diverged.
inline constexpr const char* kLowerRateMayHelp =
    "a lower rq_vae.learning_rate or contrastive_weight may help";

// An RQ-VAE of several feature sources (PLUM, arXiv 2510.07784, section 3: SID-v2). For the
// features x_m of an item's sources m, each of mean 0 and deviation 1 or so:
//
//   z      = sum over m of P_m E_m(x_m)     (one projection of the encoders' outputs, side by side)
//   r_1    = z;  e_l = the row of codebook l nearest to r_l;  r_{l+1} = r_l - e_l
//   q      = e_1 + ... + e_k                (k = num_kept; with progressive masking a random one)
//   x'_m   = D_m(q)
//   h      = H(q)                           (only with a contrastive loss)
//
// E_m, D_m and H are multilayer perceptrons: hidden layers silu(W x + b), a last layer W x.

/// Views of flat memory: the weights, or their gradients.
struct RqVaeTensors {
  struct Linear {
    TensorView weight;  ///< [out_features, in_features]
    TensorView bias;    ///< [out_features]; absent in the last layer
  };
  using Mlp = std::vector<Linear>;
  std::vector<Mlp> encoders;            ///< by source
  std::vector<TensorView> projections;  ///< by source: [codebook_dim, source_size]
  std::vector<Mlp> decoders;            ///< by source
  Mlp head;                             ///< empty without a contrastive loss
  std::vector<TensorView> codebooks;    ///< by level: [levels[level], codebook_dim]
};

/// Where all parameters stand in one flat array: matrices, then biases, then codebooks. Each begins
/// at a multiple of 64 bytes; what is between stays 0.
class RqVaeLayout {
 public:
  RqVaeLayout(const std::vector<FeatureSource>& sources, const std::vector<int64_t>& levels,
              const RqVaeConfig& config);

  struct Tensor {
    std::string name;  ///< e.g. "encoders.0.1.weight" (source, layer), "codebooks.2" (level)
    Shape shape;
    int64_t offset = 0;
  };
  /// In the order of the flat array.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  int64_t num_elements() const { return num_elements_; }
  int64_t num_matrix_elements() const { return biases_begin_; }
  int64_t codebooks_begin() const { return codebooks_begin_; }

  RqVaeTensors view(const TensorView& flat) const;

 private:
  RqVaeTensors shapes_;  // without memory
  std::vector<Tensor> tensors_;
  int64_t biases_begin_ = 0, codebooks_begin_ = 0, num_elements_ = 0;
};

/// The model and its weights. float32; float64 on the CPU, for gradient checks.
class RqVae {
 public:
  /// All weights are 0.
  RqVae(const std::vector<FeatureSource>& sources, const std::vector<int64_t>& levels,
        const RqVaeConfig& config, Device device, DType dtype = DType::kFloat32);

  /// Normal numbers in matrices and codebooks, 0 in biases. An element depends on the seed, the
  /// tensor's name and its place in it. float32 only.
  void initialize(int64_t seed);

  const RqVaeConfig& config() const { return config_; }
  const std::vector<FeatureSource>& sources() const { return sources_; }
  const std::vector<int64_t>& levels() const { return levels_; }
  int64_t num_levels() const { return static_cast<int64_t>(levels_.size()); }
  int64_t feature_dim() const;  ///< of all sources
  const RqVaeLayout& layout() const { return layout_; }
  const TensorView& weights() const { return weights_.view(); }  ///< [layout.num_elements()]
  const RqVaeTensors& tensors() const { return tensors_; }

 private:
  RqVaeConfig config_;
  std::vector<FeatureSource> sources_;
  std::vector<int64_t> levels_;
  RqVaeLayout layout_;
  Buffer weights_;
  RqVaeTensors tensors_;
};

/// FeatureNormalization gives all features of a source together the variance weight^2; the model
/// sees them divided by the root of this number, weight^2 / dim, and squared errors times it.
double reconstruction_weight(const FeatureSource& source);

/// Forward and backward pass of a fixed number of rows, in memory of its own. The first `num_items`
/// rows are items to be reconstructed; the others (partners in the contrastive loss) only have a
/// projected q. `model` must stay where it is as long as this lives.
class RqVaePass {
 public:
  RqVaePass(const RqVae& model, int64_t num_rows, int64_t num_items);

  /// Latents, codes and residuals, of x: by source [num_rows, dim].
  void encode(const std::vector<TensorView>& x, const Stream& stream);
  /// q, x' and h, after encode.
  ///   num_kept [num_rows] int32, from 1 to the number of levels
  void decode(const TensorView& num_kept, const Stream& stream);

  /// Factors of sums over the items. The pass differentiates
  ///     reconstruction * sum_m reconstruction_weight_m |x_m - x'_m|^2
  ///   + codebook       * sum_l |sg[r_l] - e_l|^2
  ///   + commitment     * sum_l |r_l - sg[e_l]|^2
  ///   + the loss that grad_head is the gradient of
  /// where sg stops gradients, codes stay as they are, the residuals of the commitment subtract
  /// stopped codes, and q passes its gradient on to z straight through or by the rotation trick.
  struct LossScales {
    double reconstruction = 0, codebook = 0, commitment = 0;
  };
  /// After decode, once: uses up what it has kept of the encoders and decoders.
  ///   gradients  are added to
  ///   grad_head  [num_rows, contrastive_size], of head_output(); absent without a head
  void backward(const RqVaeTensors& gradients, const std::vector<TensorView>& x,
                const TensorView& grad_head, const LossScales& scales, const Stream& stream);

  /// [num_levels + 1, num_rows, codebook_dim]: z, and what each further code leaves of it.
  const TensorView& residuals() const { return residuals_; }
  /// [num_levels, num_rows] int32.
  const TensorView& codes() const { return codes_; }
  const TensorView& quantized() const { return quantized_; }      ///< [num_rows, codebook_dim]
  const TensorView& head_output() const { return head_output_; }  ///< [num_rows, contrastive_size]
  /// [num_sources + num_levels] float64: |x_m - x'_m|^2 of each source and |r_l - e_l|^2 of each
  /// level, summed over the items by backward.
  const TensorView& losses() const { return losses_; }

 private:
  /// What the backward pass of a perceptron needs, by hidden layer [num_rows, features].
  struct MlpMemory {
    std::vector<TensorView> products, activations;
  };
  static void forward(const TensorView& out, const TensorView& x, const RqVaeTensors::Mlp& mlp,
                      const MlpMemory& memory, const Stream& stream);
  static void backward(const TensorView& grad_x, bool accumulate,
                       const RqVaeTensors::Mlp& gradients, const TensorView& grad_out,
                       const TensorView& x, const RqVaeTensors::Mlp& mlp, const MlpMemory& memory,
                       const Stream& stream);
  void backward_decoders(const RqVaeTensors& gradients, const std::vector<TensorView>& x,
                         const TensorView& grad_head, double scale, const Stream& stream);
  void backward_quantizer(const RqVaeTensors& gradients, const LossScales& scales,
                          const Stream& stream);
  void backward_encoders(const RqVaeTensors& gradients, const std::vector<TensorView>& x,
                         const Stream& stream);
  TensorView allocate(const Shape& shape, DType dtype);
  MlpMemory allocate(const RqVaeTensors::Mlp& mlp, int64_t num_rows);

  const RqVae& model_;
  const int64_t num_rows_, num_items_;
  std::vector<Buffer> memory_;
  std::vector<MlpMemory> encoders_, decoders_;  // by source
  MlpMemory head_;
  std::vector<TensorView> encoded_;         // by source: [num_rows, source_size]
  std::vector<TensorView> reconstruction_;  // by source: [num_items, dim]
  TensorView residuals_, codes_, quantized_, head_output_, losses_;
  TensorView grad_latent_;  // [num_rows, codebook_dim], first of q, then of z
  TensorView grad_code_;    // [num_items, codebook_dim], of each item's row of a codebook
  TensorView item_losses_;  // [num_items]
  TensorView distances_;    // workspace of nearest_code
};

/// Rows of items on a device, each source in a matrix of its own, filled from the host.
class SourceRows {
 public:
  SourceRows(const std::vector<FeatureSource>& sources, int64_t num_rows, Device device);

  /// features [feature_dim]: all sources of an item, one after the other, as FeatureNormalization
  /// leaves them. Waits until the last upload has read the host's memory.
  void set(int64_t row, const float* features);
  /// Later work on `stream` sees the rows.
  void upload(const Stream& stream);
  /// By source [end - begin, dim].
  std::vector<TensorView> rows(int64_t begin, int64_t end) const;

 private:
  std::vector<Buffer> device_;
  std::vector<Buffer> pinned_;  // only for a GPU
  std::vector<float> factors_;  // of the features, by source
  Event uploaded_;
};

/// Latents and codes of whole catalogues, batch by batch, on the model's device.
class RqVaeEncoder {
 public:
  /// `model` must stay where it is as long as this lives.
  RqVaeEncoder(const RqVae& model, int64_t batch_items);

  /// Of items [begin, end) of `rows`, normalised features:
  ///   codes [end - begin, num_levels]   may be null
  ///   z [end - begin, codebook_dim]     may be null
  void encode(int32_t* codes, float* z, const ItemRows& rows, int64_t begin, int64_t end);

 private:
  const RqVae& model_;
  const int64_t batch_items_;
  const Stream stream_;
  SourceRows input_;
  RqVaePass pass_;
  std::vector<float> features_;
  Buffer host_codes_, host_latents_;
};

/// Latents [num_items, codebook_dim] of normalised features, computed when they are read.
ItemRows latent_rows(std::shared_ptr<const RqVae> model, ItemRows features, int64_t batch_items);

/// The same model in host memory.
std::shared_ptr<const RqVae> on_host(const RqVae& model);

/// Its codebooks.
std::vector<Codebook> codebooks_of(const RqVae& model);

}  // namespace mirabelle
