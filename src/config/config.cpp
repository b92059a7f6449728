#include "mirabelle/config/config.h"

namespace mirabelle {

std::vector<ConfigSection> Config::sections() {
  return {config_section("", backend),
          config_section("data", data),
          config_section("tokenizer", tokenizer),
          config_section("co_occurrence", co_occurrence),
          config_section("rq_vae", rq_vae),
          config_section("model", model),
          config_section("training", training),
          config_section("parallel", parallel),
          config_section("evaluation", evaluation)};
}

std::string to_yaml(Config config) { return to_yaml(config.sections(), false); }

Config config_from_yaml(const std::string& text, const std::string& source) {
  Config config;
  const std::vector<ConfigSection> sections = config.sections();
  read_yaml_text(text, source, sections);
  for (const ConfigSection& section : sections) section.check();
  return config;
}

}  // namespace mirabelle
