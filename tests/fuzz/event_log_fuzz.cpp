// An event log: text with a header and an event per line. The first byte picks the delimiter.

#include <cmath>

#include "../../src/data/event_reader.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const mirabelle::fuzz::MemoryFile file;
  if (size == 0) return 0;
  file.write(mirabelle::fuzz::text_of(data + 1, size - 1));
  mirabelle::fuzz::accepts([&] {
    mirabelle::EventLogSource source;
    source.events = file.path();
    source.user_column = "user";
    source.item_column = "item";
    source.time_column = "time";
    source.delimiter = "\0\t,;"[data[0] % 4];
    mirabelle::EventReader events(source);
    mirabelle::LoggedEvent event;
    while (events.next(event)) {
      if (event.user.empty() || event.item.empty() || !(event.time >= 0)) std::abort();
      if (event.values.size() != events.other_columns().size()) std::abort();
    }
  });
  return 0;
}
