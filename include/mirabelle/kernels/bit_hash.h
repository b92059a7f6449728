#pragma once

#include <span>

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

/// out [n] int64 = a hash of the bits of each of n ranges of x, of any shape: range i is the
/// elements [offsets[i], offsets[i + 1]), with the n + 1 offsets on the host. It is the sum modulo
/// 2^64 of
///   mix(bits of the element + (its index in the range + 1) * 0x9E3779B97F4A7C15)
/// where mix is the finaliser of splitmix64 (Steele et al. 2014, "Fast splittable pseudorandom
/// number generators"). So one changed element changes the hash for certain, any other change (two
/// exchanged elements, +0 and -0) but for one chance in 2^64; backends and numbers of threads
/// agree. Throws Error if the offsets step back or leave x, and if shapes or devices disagree.
void bit_hashes(const TensorView& out, const TensorView& x, std::span<const int64_t> offsets,
                const Stream& stream);

namespace backend {
template <Device D, typename T>
void bit_hash(int64_t* out, const T* x, int64_t n, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
