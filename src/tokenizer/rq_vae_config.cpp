#include "mirabelle/tokenizer/rq_vae_config.h"

#include <bit>

#include "mirabelle/core/error.h"

namespace mirabelle {

void RqVaeConfig::visit(ConfigFields& fields) {
  fields.field("hidden_sizes", hidden_sizes,
               "hidden layers of each source's encoder; its decoder has them in reverse");
  fields.field("source_size", source_size, "what an encoder makes of its source");
  fields.field("codebook_dim", codebook_dim,
               "of the latent, which all sources are projected to, and of the codebooks' rows");
  fields.field("steps", steps, "optimizer steps; the learning rate falls to 0 there");
  fields.field("batch_items", batch_items, "items of a step over all ranks");
  fields.field("parts", parts,
               "a power of two: parts of a batch, each computed by itself; so the result is the "
               "same for every number of ranks that divides it");
  fields.field("learning_rate", learning_rate, "highest learning rate of AdamW");
  fields.field("warmup_steps", warmup_steps, "steps of linear growth to learning_rate");
  fields.field("weight_decay", weight_decay, "AdamW's decay of matrices");
  fields.field("commitment_weight", commitment_weight,
               "of the loss that holds latents near their codes; 0 = none");
  fields.field("codebook_update", codebook_update,
               "'gradient' of the codebook loss, or 'ema': moving averages of what is assigned");
  fields.field("ema_decay", ema_decay, "of these averages, per step");
  fields.field("gradient_estimator", gradient_estimator,
               "how gradients pass the quantizer: 'straight_through' or 'rotation'");
  fields.field("progressive_masking", progressive_masking,
               "decode each item from its first r codes, with r drawn anew each time");
  fields.field("kmeans_initialization", kmeans_initialization,
               "first codebooks by residual k-means on the first latents; false: random rows");
  fields.field(
      "dead_code_steps", dead_code_steps,
      "a code without an item for so many steps (counted every 20) moves to an item; 0 = never");
  fields.field("contrastive_weight", contrastive_weight,
               "of the loss that brings items of the same histories together; 0 = none");
  fields.field("contrastive_similarity", contrastive_similarity,
               "what it compares rows by: 'cosine', or 'dot_product', which may run away");
  fields.field("contrastive_temperature", contrastive_temperature, "of its logits");
  fields.field("contrastive_size", contrastive_size, "hidden and output size of its head");
}

void RqVaeConfig::check() const {
  for (const int64_t size : hidden_sizes) {
    MIRABELLE_CHECK_USAGE(size > 0, "rq_vae.hidden_sizes must be positive, not ", size);
  }
  MIRABELLE_CHECK_USAGE(source_size > 0, "rq_vae.source_size must be positive, not ", source_size);
  MIRABELLE_CHECK_USAGE(codebook_dim > 0, "rq_vae.codebook_dim must be positive, not ",
                        codebook_dim);
  MIRABELLE_CHECK_USAGE(steps >= 0, "rq_vae.steps must not be negative, is ", steps);
  MIRABELLE_CHECK_USAGE(parts > 0 && std::has_single_bit(static_cast<uint64_t>(parts)),
                        "rq_vae.parts must be a power of two, not ", parts);
  MIRABELLE_CHECK_USAGE(batch_items > 0 && batch_items % parts == 0, "rq_vae.batch_items ",
                        batch_items, " must be a positive multiple of rq_vae.parts ", parts);
  MIRABELLE_CHECK_USAGE(learning_rate > 0, "rq_vae.learning_rate must be positive, not ",
                        learning_rate);
  MIRABELLE_CHECK_USAGE(warmup_steps >= 0, "rq_vae.warmup_steps must not be negative, is ",
                        warmup_steps);
  MIRABELLE_CHECK_USAGE(weight_decay >= 0, "rq_vae.weight_decay must not be negative, is ",
                        weight_decay);
  MIRABELLE_CHECK_USAGE(commitment_weight >= 0,
                        "rq_vae.commitment_weight must not be negative, is ", commitment_weight);
  MIRABELLE_CHECK_USAGE(codebook_update == "gradient" || codebook_update == "ema",
                        "rq_vae.codebook_update must be 'gradient' or 'ema', not '",
                        codebook_update, "'");
  MIRABELLE_CHECK_USAGE(ema_decay >= 0 && ema_decay < 1,
                        "rq_vae.ema_decay must be from 0 to below 1, not ", ema_decay);
  MIRABELLE_CHECK_USAGE(
      gradient_estimator == "straight_through" || gradient_estimator == "rotation",
      "rq_vae.gradient_estimator must be 'straight_through' or 'rotation', not '",
      gradient_estimator, "'");
  MIRABELLE_CHECK_USAGE(dead_code_steps >= 0, "rq_vae.dead_code_steps must not be negative, is ",
                        dead_code_steps);
  MIRABELLE_CHECK_USAGE(contrastive_weight >= 0,
                        "rq_vae.contrastive_weight must not be negative, is ", contrastive_weight);
  MIRABELLE_CHECK_USAGE(
      contrastive_similarity == "cosine" || contrastive_similarity == "dot_product",
      "rq_vae.contrastive_similarity must be 'cosine' or 'dot_product', not '",
      contrastive_similarity, "'");
  MIRABELLE_CHECK_USAGE(contrastive_temperature > 0,
                        "rq_vae.contrastive_temperature must be positive, not ",
                        contrastive_temperature);
  MIRABELLE_CHECK_USAGE(contrastive_size > 0, "rq_vae.contrastive_size must be positive, not ",
                        contrastive_size);
}

void RqVaeConfig::check_ranks(int64_t num_ranks) const {
  MIRABELLE_CHECK_USAGE(parts % num_ranks == 0, "the number of ranks, ", num_ranks,
                        ", does not divide rq_vae.parts, ", parts);
}

}  // namespace mirabelle
