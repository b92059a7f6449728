#include "mirabelle/core/random.h"

#include <cmath>
#include <numbers>

namespace mirabelle {
namespace {

/// The finaliser of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

uint64_t absorb(uint64_t state, uint64_t value) {
  return mix(state + 0x9E3779B97F4A7C15 + mix(value + 0x9E3779B97F4A7C15));
}

double to_unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

double box_muller(const PhiloxCounter& bits) {
  const double u = to_unit(uint64_t{bits[0]} << 32 | bits[1]);
  const double v = to_unit(uint64_t{bits[2]} << 32 | bits[3]);
  return std::sqrt(-2.0 * std::log(1.0 - u)) * std::cos(2.0 * std::numbers::pi * v);
}

PhiloxCounter philox_at(uint64_t key, uint64_t index) {
  return philox(key, {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0});
}

}  // namespace

uint64_t random_key(uint64_t seed, std::string_view purpose,
                    std::initializer_list<int64_t> indices) {
  uint64_t state = mix(seed);
  for (char c : purpose) state = absorb(state, static_cast<unsigned char>(c));
  state =
      absorb(state, 0x100 + purpose.size());  // ends the text, so ("ab", 1) is not ("a", 'b', 1)
  for (int64_t index : indices) state = absorb(state, static_cast<uint64_t>(index));
  return state;
}

double random_normal(uint64_t key, int64_t element) {
  return box_muller(philox_at(key, static_cast<uint64_t>(element)));
}

uint64_t Random::next() {
  const PhiloxCounter bits = philox_at(key_, position_++);
  return uint64_t{bits[0]} << 32 | bits[1];
}

double Random::uniform() { return to_unit(next()); }

int64_t Random::below(int64_t n) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>((static_cast<Wide>(next()) * static_cast<Wide>(n)) >> 64);
}

double Random::normal() { return box_muller(philox_at(key_, position_++)); }

}  // namespace mirabelle
