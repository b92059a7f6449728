// A configuration in YAML. What is read must read back as the same from what is written.

#include "fuzz.h"
#include "mirabelle/config/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(mirabelle::fuzz::text_of(data, size));
  mirabelle::Config config;
  if (!mirabelle::fuzz::accepts([&] { config = mirabelle::config_from_yaml(text, "f.yaml"); })) {
    return 0;
  }
  const std::string written = mirabelle::to_yaml(config);
  if (mirabelle::to_yaml(mirabelle::config_from_yaml(written, "written")) != written) std::abort();
  return 0;
}
