#include "mirabelle/tokenizer/code_order.h"

#include <bit>
#include <tuple>

namespace mirabelle {
namespace {

struct KeyedItem {
  uint64_t key;
  int32_t item;
};

void sort_by_key(std::vector<KeyedItem>& items) {
  std::sort(items.begin(), items.end(), [](const KeyedItem& a, const KeyedItem& b) {
    return std::tie(a.key, a.item) < std::tie(b.key, b.item);
  });
}

/// Replaces sorted keys by 0, 1, ... and returns how many different ones there are.
uint64_t number_keys(std::vector<KeyedItem>& items) {
  uint64_t number = 0, former = items.empty() ? 0 : items.front().key;
  for (KeyedItem& item : items) {
    number += item.key != former;
    former = item.key;
    item.key = number;
  }
  return number + 1;
}

}  // namespace

std::vector<int32_t> sorted_by_codes(const CodeRows& codes, int64_t length) {
  const int64_t num_items = codes.num_items(), num_levels = codes.num_levels;
  std::vector<KeyedItem> keyed(num_items);
  for (int64_t i = 0; i < num_items; ++i) keyed[i] = {0, static_cast<int32_t>(i)};
  // A key holds as many codes as fit; then the numbers of the groups that they make take less.
  int key_bits = 0;
  for (int64_t level = 0; level < length; ++level) {
    uint32_t highest = 0;
    for (int64_t i = 0; i < num_items; ++i) {
      highest = std::max(highest, static_cast<uint32_t>(codes.codes[i * num_levels + level]));
    }
    const int bits = std::bit_width(highest);
    if (key_bits + bits > 64) {
      sort_by_key(keyed);
      key_bits = std::bit_width(number_keys(keyed));
    }
    for (KeyedItem& item : keyed) {
      item.key = item.key << bits | static_cast<uint32_t>(codes.row(item.item)[level]);
    }
    key_bits += bits;
  }
  sort_by_key(keyed);
  std::vector<int32_t> order;
  order.reserve(num_items);
  for (const KeyedItem& item : keyed) order.push_back(item.item);
  return order;
}

}  // namespace mirabelle
