#include "mirabelle/tokenizer/rq_vae_trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numbers>
#include <numeric>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/kernels/adamw.h"
#include "mirabelle/kernels/codebook_training.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/tokenizer/contrastive_loss.h"
#include "mirabelle/tokenizer/residual_kmeans.h"

namespace mirabelle {
namespace {

using Clock = std::chrono::steady_clock;

/// The items of all batches, one after the other: epochs of all items, in runs of neighbours that
/// are shuffled anew for each. Those that make no whole run come last.
class ItemOrder {
 public:
  ItemOrder(int64_t num_items, int64_t seed)
      : num_items_(num_items),
        run_length_(num_items <= (1 << 20) ? 1 : 64),
        seed_(seed),
        runs_(num_items / run_length_) {}

  int64_t item(int64_t position) {
    if (position / num_items_ != epoch_) shuffle(position / num_items_);
    const int64_t place = position % num_items_, run = place / run_length_;
    if (run == static_cast<int64_t>(runs_.size())) return place;
    return runs_[run] * run_length_ + place % run_length_;
  }

 private:
  void shuffle(int64_t epoch) {
    epoch_ = epoch;
    std::iota(runs_.begin(), runs_.end(), 0);
    Random(random_key(static_cast<uint64_t>(seed_), "rq_vae order", {epoch})).shuffle(runs_);
  }

  const int64_t num_items_, run_length_, seed_;
  int64_t epoch_ = -1;
  std::vector<int64_t> runs_;
};

/// Calls use(i, features) with the features of items[i], for all i. Neighbours are read together;
/// `features` is memory that is used again.
template <typename Use>
void for_each_item(const ItemRows& rows, const std::vector<int64_t>& items,
                   std::vector<float>& features, const Use& use) {
  constexpr int64_t kMostTogether = 64;
  const int64_t n = static_cast<int64_t>(items.size());
  features.resize(kMostTogether * rows.dim);
  for (int64_t first = 0, count; first < n; first += count) {
    count = 1;
    while (first + count < n && count < kMostTogether &&
           items[first + count] == items[first] + count) {
      ++count;
    }
    rows.read(items[first], items[first] + count, features.data());
    for (int64_t i = 0; i < count; ++i) use(first + i, features.data() + i * rows.dim);
  }
}

/// Linear growth, then half a cosine down to 0 at the last step.
double learning_rate_at(const RqVaeConfig& config, int64_t step) {
  const double done = static_cast<double>(step);
  const double warmup = static_cast<double>(std::min(config.warmup_steps, config.steps));
  if (done < warmup) return config.learning_rate * (done + 1) / warmup;
  const double length = static_cast<double>(config.steps) - warmup;
  return config.learning_rate * 0.5 * (1 + std::cos(std::numbers::pi * (done - warmup) / length));
}

class Fit {
 public:
  Fit(const ItemRows& rows, const std::vector<FeatureSource>& sources, const CoOccurrences* pairs,
      const std::vector<int64_t>& levels, const RqVaeConfig& config, int64_t seed, Device device,
      const Communicator& communicator,
      const std::function<void(const RqVaeProgress&)>& on_progress);
  RqVae run();

 private:
  static constexpr int64_t kReportSteps = 20;

  bool is_contrastive() const { return config_.contrastive_weight > 0; }
  bool is_ema() const { return config_.codebook_update == "ema"; }
  TensorView part_rows(const TensorView& x, int64_t part) const {
    return x.rows(part * part_rows_, (part + 1) * part_rows_);
  }
  /// Of a flat array over the codes of all levels.
  TensorView level_rows(const TensorView& x, int64_t level) const {
    return x.rows(first_code_[level], first_code_[level + 1]);
  }
  Buffer make(const Shape& shape, DType dtype = DType::kFloat32) const {
    return Buffer(shape, dtype, stream_.device());
  }
  Random random(const char* purpose, int64_t step, int64_t a, int64_t b = 0) const {
    return Random(random_key(static_cast<uint64_t>(seed_), purpose, {step, a, b}));
  }

  void initialize_codebooks();
  void step(int64_t step);
  void draw_batch(int64_t step);
  void draw_partners(int64_t step);
  void draw_masks(int64_t step);
  void reduce_gradients();
  void update(int64_t step);
  void update_moving_averages();
  void look(int64_t steps_done);
  void move_dead_codes(int64_t step, const std::vector<int64_t>& counts, int64_t steps_since);
  std::vector<double> gather_losses();

  const ItemRows& rows_;
  const CoOccurrences* pairs_;
  const RqVaeConfig& config_;
  const int64_t seed_;
  const Communicator& communicator_;
  const std::function<void(const RqVaeProgress&)>& on_progress_;
  const Stream stream_;
  RqVae model_;
  ItemOrder order_;

  // A part has part_items_ items, then as many partners if there is a contrastive loss. This rank
  // computes num_parts_ parts from first_part_ on.
  const int64_t part_items_, part_rows_, num_parts_, first_part_;
  std::vector<int64_t> first_code_;  // [num_levels + 1] of each level among all codes
  std::vector<RqVaePass> passes_;    // by own part

  // The batch, on the host: row after row of the own parts, and of all.
  std::vector<float> features_;
  std::vector<int64_t> items_;
  std::vector<int32_t> num_kept_, partners_;
  int64_t num_pairs_ = 0;
  // And on the device.
  SourceRows input_;
  Buffer device_num_kept_;

  Buffer gradients_, gradient_;  // of own parts; of the batch
  std::vector<RqVaeTensors> gradient_views_;
  RqVaeTensors gradient_view_;
  Buffer exp_avg_, exp_avg_sq_;
  Buffer counts_;                    // of codes since the last look
  Buffer step_counts_, ema_counts_;  // only for moving averages
  std::vector<int64_t> unused_steps_;

  // Only with a contrastive loss.
  std::unique_ptr<ContrastiveLoss> contrastive_;
  Buffer heads_, grad_heads_;  // of own rows

  int64_t steps_at_look_ = 0;
  Clock::time_point look_time_ = Clock::now();
};

Fit::Fit(const ItemRows& rows, const std::vector<FeatureSource>& sources,
         const CoOccurrences* pairs, const std::vector<int64_t>& levels, const RqVaeConfig& config,
         int64_t seed, Device device, const Communicator& communicator,
         const std::function<void(const RqVaeProgress&)>& on_progress)
    : rows_(rows),
      pairs_(pairs),
      config_(config),
      seed_(seed),
      communicator_(communicator),
      on_progress_(on_progress),
      stream_(device),
      model_(sources, levels, config, device),
      order_(rows.num_items, seed),
      part_items_(config.batch_items / config.parts),
      part_rows_(is_contrastive() ? 2 * part_items_ : part_items_),
      num_parts_(config.parts / communicator.size()),
      first_part_(num_parts_ * communicator.rank()),
      items_(num_parts_ * part_rows_),
      num_kept_(num_parts_ * part_rows_),
      partners_(config.parts * part_rows_),
      input_(sources, num_parts_ * part_rows_, device) {
  const int64_t num_elements = model_.layout().num_elements(), own_rows = num_parts_ * part_rows_;
  first_code_.push_back(0);
  for (const int64_t size : levels) first_code_.push_back(first_code_.back() + size);
  const int64_t num_codes = first_code_.back();
  unused_steps_.resize(num_codes);

  device_num_kept_ = make({own_rows}, DType::kInt32);
  gradients_ = make({num_parts_, num_elements});
  gradient_ = make({num_elements});
  gradient_view_ = model_.layout().view(gradient_.view());
  exp_avg_ = make({num_elements});
  exp_avg_sq_ = make({num_elements});
  counts_ = make({num_codes}, DType::kInt64);
  if (is_ema()) {
    step_counts_ = make({num_codes}, DType::kInt64);
    ema_counts_ = make({num_codes});
  }
  passes_.reserve(num_parts_);
  for (int64_t part = 0; part < num_parts_; ++part) {
    passes_.emplace_back(model_, part_rows_, part_items_);
    gradient_views_.push_back(model_.layout().view(gradients_.view().slice(part)));
  }
  if (!is_contrastive()) return;
  heads_ = make({own_rows, config.contrastive_size});
  grad_heads_ = make({own_rows, config.contrastive_size});
  contrastive_ =
      std::make_unique<ContrastiveLoss>(config, part_rows_, DType::kFloat32, device, communicator);
}

RqVae Fit::run() {
  model_.initialize(seed_);
  if (config_.kmeans_initialization) initialize_codebooks();
  look_time_ = Clock::now();
  const int64_t look_steps =
      config_.dead_code_steps > 0 ? std::min(config_.dead_code_steps, kReportSteps) : kReportSteps;
  for (int64_t done = 1; done <= config_.steps; ++done) {
    step(done - 1);
    if (done % look_steps == 0 || done == config_.steps) look(done);
  }
  communicator_.synchronize(stream_);
  return std::move(model_);
}

/// By residual k-means on the latents of a sample.
void Fit::initialize_codebooks() {
  constexpr int64_t kBatch = 1024;
  const int64_t dim = config_.codebook_dim;
  const int64_t most_codes = *std::max_element(model_.levels().begin(), model_.levels().end());
  const int64_t count = std::min(rows_.num_items, std::max<int64_t>(16384, 8 * most_codes));
  std::vector<int64_t> items(count);
  for (int64_t i = 0; i < count; ++i) items[i] = order_.item(i);
  std::vector<float> latents(count * dim);
  const ItemRows sample = {count, rows_.dim, [&](int64_t begin, int64_t end, float* out) {
                             for_each_item(rows_, {items.begin() + begin, items.begin() + end},
                                           features_, [&](int64_t i, const float* features) {
                                             std::copy_n(features, rows_.dim, out + i * rows_.dim);
                                           });
                           }};
  RqVaeEncoder(model_, std::min(kBatch, count)).encode(nullptr, latents.data(), sample, 0, count);

  TokenizerConfig kmeans;
  kmeans.levels = model_.levels();
  kmeans.iterations = 10;
  kmeans.seed = seed_;
  const ItemRows latent_rows = {count, dim, [&](int64_t begin, int64_t end, float* out) {
                                  std::copy(latents.begin() + begin * dim,
                                            latents.begin() + end * dim, out);
                                }};
  const ResidualKMeans fit = residual_kmeans(latent_rows, kmeans, stream_.device(), communicator_);
  for (int64_t level = 0; level < model_.num_levels(); ++level) {
    // Where there are fewer different residuals than codes, the others stay random.
    const Codebook& codebook = fit.codebooks[level];
    copy(model_.tensors().codebooks[level].rows(0, codebook.size),
         view_of(codebook.rows.data(), {codebook.size, dim}), stream_);
    if (!is_ema()) continue;
    // As if all steps before had given every code as many items: the first ones only adjust it.
    const int64_t size = model_.levels()[level];
    const std::vector<float> usual(
        size, static_cast<float>(config_.batch_items) / static_cast<float>(size));
    copy(level_rows(ema_counts_.view(), level), view_of(usual), stream_);
  }
  stream_.synchronize();
}

// --- a step -----------------------------------------------------------------------------------

void Fit::step(int64_t step) {
  draw_batch(step);
  const auto x = [&](int64_t part) {
    return input_.rows(part * part_rows_, (part + 1) * part_rows_);
  };
  for (int64_t part = 0; part < num_parts_; ++part) {
    passes_[part].encode(x(part), stream_);
    passes_[part].decode(part_rows(device_num_kept_.view(), part), stream_);
    if (is_contrastive()) {
      copy(part_rows(heads_.view(), part), passes_[part].head_output(), stream_);
    }
  }
  if (is_contrastive()) {
    contrastive_->differentiate(grad_heads_.view(), heads_.view(), partners_,
                                config_.contrastive_weight, stream_);
  }

  const double of_items = 1 / static_cast<double>(config_.batch_items);
  RqVaePass::LossScales scales;
  scales.reconstruction = of_items;
  scales.codebook = is_ema() ? 0.5 : of_items;  // see ema_codebook_update
  scales.commitment = config_.commitment_weight * of_items;
  fill_zero(gradients_.view(), stream_);
  for (int64_t part = 0; part < num_parts_; ++part) {
    const TensorView grad_head =
        is_contrastive() ? part_rows(grad_heads_.view(), part) : TensorView();
    passes_[part].backward(gradient_views_[part], x(part), grad_head, scales, stream_);
  }
  reduce_gradients();
  update(step);
}

/// Everything of the batch that is not computed, as pure functions of the seed and the step.
void Fit::draw_batch(int64_t step) {
  for (int64_t part = 0; part < num_parts_; ++part) {
    const int64_t position = step * config_.batch_items + (first_part_ + part) * part_items_;
    for (int64_t i = 0; i < part_items_; ++i) {
      items_[part * part_rows_ + i] = order_.item(position + i);
    }
  }
  if (is_contrastive()) draw_partners(step);
  draw_masks(step);
  for_each_item(rows_, items_, features_,
                [&](int64_t row, const float* features) { input_.set(row, features); });
  input_.upload(stream_);
  copy(device_num_kept_.view(), view_of(num_kept_), stream_);
}

/// Of all items of the batch, because every rank needs to know which rows have a partner. A row
/// without one holds the item itself, and counts for nothing.
void Fit::draw_partners(int64_t step) {
  num_pairs_ = 0;
  for (int64_t i = 0; i < config_.batch_items; ++i) {
    const int64_t item = order_.item(step * config_.batch_items + i);
    const int64_t partner = pairs_->draw(item, random("rq_vae partner", step, i).uniform());
    MIRABELLE_CHECK(partner < rows_.num_items, "item ", item, " has the partner ", partner, " of ",
                    rows_.num_items, " items");
    const int64_t part = i / part_items_;
    const int64_t row = part * part_rows_ + i % part_items_, partner_row = row + part_items_;
    partners_[row] = static_cast<int32_t>(partner < 0 ? -1 : partner_row);
    partners_[partner_row] = static_cast<int32_t>(partner < 0 ? -1 : row);
    num_pairs_ += partner >= 0;
    if (part < first_part_ || part >= first_part_ + num_parts_) continue;
    items_[partner_row - first_part_ * part_rows_] = partner < 0 ? item : partner;
  }
}

void Fit::draw_masks(int64_t step) {
  const int64_t num_levels = model_.num_levels();
  for (size_t i = 0; i < num_kept_.size(); ++i) {
    const int64_t row = first_part_ * part_rows_ + static_cast<int64_t>(i);
    num_kept_[i] = static_cast<int32_t>(config_.progressive_masking
                                            ? 1 + random("rq_vae mask", step, row).below(num_levels)
                                            : num_levels);
  }
}

void Fit::reduce_gradients() {
  tree_sum(gradient_.view(), gradients_.view(), stream_);
  communicator_.all_reduce(gradient_.view(), ReduceOp::kSum, stream_);
  for (int64_t part = 0; part < num_parts_; ++part) {
    for (int64_t level = 0; level < model_.num_levels(); ++level) {
      count_codes(level_rows(counts_.view(), level),
                  passes_[part].codes().slice(level).rows(0, part_items_), stream_);
    }
  }
}

void Fit::update(int64_t step) {
  const RqVaeLayout& layout = model_.layout();
  AdamWStep adamw;
  adamw.learning_rate = learning_rate_at(config_, step);
  adamw.beta2 = 0.999;
  adamw.step = step + 1;
  const auto update_range = [&](int64_t begin, int64_t end) {
    adamw_update(model_.weights().rows(begin, end), {}, exp_avg_.view().rows(begin, end),
                 exp_avg_sq_.view().rows(begin, end), gradient_.view().rows(begin, end), {}, adamw,
                 stream_);
  };
  adamw.weight_decay = config_.weight_decay;
  update_range(0, layout.num_matrix_elements());
  adamw.weight_decay = 0;
  update_range(layout.num_matrix_elements(),
               is_ema() ? layout.codebooks_begin() : layout.num_elements());
  if (is_ema()) update_moving_averages();
}

void Fit::update_moving_averages() {
  fill_zero(step_counts_.view(), stream_);
  for (int64_t level = 0; level < model_.num_levels(); ++level) {
    for (const RqVaePass& pass : passes_) {
      count_codes(level_rows(step_counts_.view(), level),
                  pass.codes().slice(level).rows(0, part_items_), stream_);
    }
  }
  communicator_.all_reduce(step_counts_.view(), ReduceOp::kSum, stream_);
  for (int64_t level = 0; level < model_.num_levels(); ++level) {
    ema_codebook_update(model_.tensors().codebooks[level], level_rows(ema_counts_.view(), level),
                        gradient_view_.codebooks[level], level_rows(step_counts_.view(), level),
                        config_.ema_decay, stream_);
  }
}

// --- between steps ----------------------------------------------------------------------------

/// Reports, and moves dead codes.
void Fit::look(int64_t steps_done) {
  const int64_t num_codes = counts_.view().shape[0], steps_since = steps_done - steps_at_look_;
  std::vector<int64_t> counts(num_codes);
  copy(view_of(counts), counts_.view(), stream_);
  fill_zero(counts_.view(), stream_);
  const std::vector<double> losses = gather_losses();  // waits for the stream
  communicator_.all_reduce(view_of(counts), ReduceOp::kSum, stream_);
  RqVaeProgress now{};
  now.step = steps_done;
  now.steps = config_.steps;
  now.reconstruction = losses[0];
  now.quantization = losses[1];
  now.contrastive = losses[2];
  now.total = now.reconstruction +
              (config_.commitment_weight + (is_ema() ? 0 : 1)) * now.quantization +
              config_.contrastive_weight * now.contrastive;
  MIRABELLE_CHECK(std::isfinite(now.total), "the RQ-VAE's loss is ", now.total, " at step ",
                  steps_done, "; ", kLowerRateMayHelp);
  if (config_.dead_code_steps > 0 && steps_done < config_.steps) {
    move_dead_codes(steps_done, counts, steps_since);
  }
  now.used_codes = 1 - static_cast<double>(std::count(counts.begin(), counts.end(), 0)) /
                           static_cast<double>(num_codes);
  const Clock::time_point time = Clock::now();
  const std::chrono::duration<double> seconds = time - look_time_;
  now.items_per_second = static_cast<double>(steps_since * config_.batch_items) / seconds.count();
  look_time_ = time;
  steps_at_look_ = steps_done;
  if (on_progress_) on_progress_(now);
}

/// Reconstruction, quantization and contrastive loss of the last step. The parts' sums are added in
/// their order.
std::vector<double> Fit::gather_losses() {
  const int64_t num_sources = static_cast<int64_t>(model_.sources().size());
  const int64_t width = num_sources + model_.num_levels() + 1;
  std::vector<double> of_parts(config_.parts * width);  // zeros but for the own parts
  for (int64_t part = 0; part < num_parts_; ++part) {
    double* to = of_parts.data() + (first_part_ + part) * width;
    copy(view_of(to, {width - 1}), passes_[part].losses(), stream_);
    if (!is_contrastive()) continue;
    copy(view_of(to + width - 1, {1}), contrastive_->losses().rows(part, part + 1), stream_);
  }
  communicator_.synchronize(stream_);
  communicator_.all_reduce(view_of(of_parts), ReduceOp::kSum, stream_);
  std::vector<double> losses(3);
  for (int64_t i = 0; i < config_.parts * width; ++i) {
    const int64_t column = i % width;
    if (column < num_sources) {
      losses[0] += reconstruction_weight(model_.sources()[column]) * of_parts[i];
    } else {
      losses[column + 1 < width ? 1 : 2] += of_parts[i];
    }
  }
  losses[0] /= static_cast<double>(config_.batch_items);
  losses[1] /= static_cast<double>(config_.batch_items);
  losses[2] /= static_cast<double>(std::max<int64_t>(1, 2 * num_pairs_));
  return losses;
}

/// Codes without an item for long take what an item of the last batch had left before their level.
/// AdamW's means of their gradients have shrunk since, for the defaults to 0.9^100 of what they
/// were.
void Fit::move_dead_codes(int64_t step, const std::vector<int64_t>& counts, int64_t steps_since) {
  const int64_t dim = config_.codebook_dim;
  struct DeadCode {
    int64_t level, code;
  };
  std::vector<DeadCode> dead;
  for (int64_t level = 0; level < model_.num_levels(); ++level) {
    for (int64_t code = first_code_[level]; code < first_code_[level + 1]; ++code) {
      unused_steps_[code] = counts[code] > 0 ? 0 : unused_steps_[code] + steps_since;
      if (unused_steps_[code] < config_.dead_code_steps) continue;
      unused_steps_[code] = 0;
      dead.push_back({level, code - first_code_[level]});
    }
  }
  if (dead.empty()) return;
  const int64_t num_dead = static_cast<int64_t>(dead.size());
  std::vector<float> found(num_dead * dim);  // zeros where another rank has the item
  for (int64_t i = 0; i < num_dead; ++i) {
    const int64_t place =
        random("rq_vae dead code", step, dead[i].level, dead[i].code).below(config_.batch_items);
    const int64_t part = place / part_items_ - first_part_, row = place % part_items_;
    if (part < 0 || part >= num_parts_) continue;
    copy(view_of(found.data() + i * dim, {1, dim}),
         passes_[part].residuals().slice(dead[i].level).rows(row, row + 1), stream_);
  }
  communicator_.synchronize(stream_);
  for (float& value : found) value += 0.0f;  // makes +0 of -0, as the sum over ranks does
  communicator_.all_reduce(view_of(found), ReduceOp::kSum, stream_);
  for (int64_t i = 0; i < num_dead; ++i) {
    copy(model_.tensors().codebooks[dead[i].level].rows(dead[i].code, dead[i].code + 1),
         view_of(found.data() + i * dim, {1, dim}), stream_);
  }
  stream_.synchronize();  // the rows may go
}

}  // namespace

RqVae fit_rq_vae(const ItemRows& rows, const std::vector<FeatureSource>& sources,
                 const CoOccurrences* pairs, const std::vector<int64_t>& levels,
                 const RqVaeConfig& config, int64_t seed, Device device,
                 const Communicator& communicator,
                 const std::function<void(const RqVaeProgress&)>& on_progress) {
  config.check();
  MIRABELLE_CHECK_DATA(rows.num_items > 0, "there are no items to make semantic IDs for");
  config.check_ranks(communicator.size());
  MIRABELLE_CHECK_USAGE(config.contrastive_weight == 0 || pairs,
                        "rq_vae.contrastive_weight wants co-occurrences of items");
  MIRABELLE_CHECK(!pairs || static_cast<int64_t>(pairs->offsets.size()) == rows.num_items + 1,
                  "the co-occurrences are those of ",
                  pairs ? static_cast<int64_t>(pairs->offsets.size()) - 1 : 0, " items, wanted ",
                  rows.num_items);
  const int64_t feature_dim =
      std::accumulate(sources.begin(), sources.end(), int64_t{0},
                      [](int64_t sum, const FeatureSource& source) { return sum + source.dim; });
  MIRABELLE_CHECK(feature_dim == rows.dim, "the sources have ", feature_dim, " features, the rows ",
                  rows.dim);
  return Fit(rows, sources, pairs, levels, config, seed, device, communicator, on_progress).run();
}

}  // namespace mirabelle
