#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace mirabelle {

/// Counter-based randomness: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
/// as 1, 2, 3"). A number is a pure function of a key (what it is for) and a counter (which one),
/// so it never depends on ranks, threads or the order of evaluation.
using PhiloxCounter = std::array<uint32_t, 4>;

inline PhiloxCounter philox(uint64_t key, PhiloxCounter counter) {
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

/// A Philox key for one purpose, e.g. random_key(seed, "dropout", {step, layer}).
uint64_t random_key(uint64_t seed, std::string_view purpose,
                    std::initializer_list<int64_t> indices = {});

/// The normally distributed number number `element` under `key` (Box-Muller).
double random_normal(uint64_t key, int64_t element);

/// A sequence of numbers under one key, for code that draws in a fixed order of its own.
class Random {
 public:
  explicit Random(uint64_t key) : key_(key) {}

  uint64_t next();           ///< 64 random bits
  double uniform();          ///< [0, 1)
  int64_t below(int64_t n);  ///< 0 .. n - 1 (n > 0), bias below n / 2^64
  double normal();           ///< mean 0, deviation 1

  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (int64_t i = static_cast<int64_t>(values.size()) - 1; i > 0; --i) {
      std::swap(values[i], values[below(i + 1)]);
    }
  }

 private:
  uint64_t key_;
  uint64_t position_ = 0;
};

}  // namespace mirabelle
