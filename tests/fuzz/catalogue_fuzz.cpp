// items.jsonl, a JSON object per line.

#include "../../src/data/catalogue_import.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mirabelle::fuzz::MemoryFile file;
  file.write(mirabelle::fuzz::text_of(data, size));
  mirabelle::fuzz::accepts([] {
    mirabelle::read_catalogue(file.path(),
                              [](const mirabelle::CatalogueItem& item, const std::string&) {
                                if (item.id.empty() || item.metadata.empty()) std::abort();
                              });
  });
  return 0;
}
