#pragma once

#include <string>

#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

struct DataConfig {
  std::string corpus;
  int64_t history_length = 20;
  std::string long_histories = "windows";

  void visit(ConfigFields& fields) {
    fields.field("corpus", corpus, "corpus folder, made by mirabelle-data");
    fields.field("history_length", history_length,
                 "newest events that the model sees when it recommends");
    fields.field("long_histories", long_histories,
                 "training histories longer than training.max_sequence_tokens: cut into 'windows', "
                 "or keep the newest events ('last')");
  }

  void check() const {
    MIRABELLE_CHECK_USAGE(history_length > 0, "data.history_length must be positive, not ",
                          history_length);
    MIRABELLE_CHECK_USAGE(long_histories == "windows" || long_histories == "last",
                          "data.long_histories must be 'windows' or 'last', not '", long_histories,
                          "'");
  }
};

}  // namespace mirabelle
