#include "mirabelle/tokenizer/rq_vae_config.h"

#include <functional>

#include "support/errors.h"

namespace mirabelle::testing {
namespace {

TEST(RqVaeConfigTest, DefaultsAreValid) { EXPECT_NO_THROW(RqVaeConfig().check()); }

TEST(RqVaeConfigTest, EveryBadValueIsRefusedByTheNameOfItsField) {
  struct BadValue {
    const char* message;
    std::function<void(RqVaeConfig&)> set;
  };
  const BadValue kBadValues[] = {
      {"rq_vae.hidden_sizes must be positive, not 0",
       [](auto& config) {
         config.hidden_sizes = {8, 0};
       }},
      {"rq_vae.source_size must be positive, not 0", [](auto& config) { config.source_size = 0; }},
      {"rq_vae.codebook_dim must be positive", [](auto& config) { config.codebook_dim = -1; }},
      {"rq_vae.steps must not be negative", [](auto& config) { config.steps = -1; }},
      {"rq_vae.parts must be a power of two, not 6", [](auto& config) { config.parts = 6; }},
      {"rq_vae.parts must be a power of two, not 0", [](auto& config) { config.parts = 0; }},
      {"rq_vae.batch_items 0 must", [](auto& config) { config.batch_items = 0; }},
      {"rq_vae.batch_items 1020 must be a positive multiple of rq_vae.parts 8",
       [](auto& config) { config.batch_items = 1020; }},
      {"rq_vae.learning_rate must", [](auto& config) { config.learning_rate = 0; }},
      {"rq_vae.warmup_steps must", [](auto& config) { config.warmup_steps = -1; }},
      {"rq_vae.weight_decay must", [](auto& config) { config.weight_decay = -1; }},
      {"rq_vae.commitment_weight must", [](auto& config) { config.commitment_weight = -1; }},
      {"rq_vae.codebook_update must be 'gradient' or 'ema', not 'mean'",
       [](auto& config) { config.codebook_update = "mean"; }},
      {"rq_vae.ema_decay must", [](auto& config) { config.ema_decay = 1; }},
      {"rq_vae.gradient_estimator must be 'straight_through' or 'rotation', not 'gumbel'",
       [](auto& config) { config.gradient_estimator = "gumbel"; }},
      {"rq_vae.dead_code_steps must", [](auto& config) { config.dead_code_steps = -1; }},
      {"rq_vae.contrastive_weight must", [](auto& config) { config.contrastive_weight = -1; }},
      {"rq_vae.contrastive_similarity must be 'cosine' or 'dot_product', not 'distance'",
       [](auto& config) { config.contrastive_similarity = "distance"; }},
      {"rq_vae.contrastive_temperature must",
       [](auto& config) { config.contrastive_temperature = 0; }},
      {"rq_vae.contrastive_size must", [](auto& config) { config.contrastive_size = 0; }},
  };
  for (const BadValue& bad : kBadValues) {
    RqVaeConfig config;
    bad.set(config);
    expect_error(ErrorKind::kUsage, bad.message, [&] { config.check(); });
  }
}

}  // namespace
}  // namespace mirabelle::testing
