#pragma once

#include <cstdint>
#include <initializer_list>

#include "mirabelle/core/bfloat16.h"
#include "mirabelle/core/cuda_check.h"

namespace mirabelle::backend {

inline int64_t ceil_div(int64_t n, int64_t size) { return (n + size - 1) / size; }

/// Kernels that go over features take them by eight, which is 16 bytes of bfloat16, two times 16 of
/// float32, and one Philox block of dropout.
inline constexpr int kVector = 8;

/// Whether rows of `row_size` elements in these arrays can be taken by eight with 16-byte accesses.
inline bool rows_are_aligned(int64_t row_size, std::initializer_list<const void*> arrays) {
  bool aligned = row_size % kVector == 0;
  for (const void* array : arrays) aligned &= reinterpret_cast<uintptr_t>(array) % 16 == 0;
  return aligned;
}

/// Eight neighbouring elements, in float32.
struct Vector {
  float value[kVector];
};

namespace detail {
template <typename T>
struct alignas(16) Chunk {
  T element[16 / sizeof(T)];
};
}  // namespace detail

/// Elements [first, first + 8) of a row of `size` elements; those past the end are 0. kAligned:
/// `size` is a multiple of 8 and the row aligned to 16 bytes.
template <bool kAligned, typename T>
__device__ inline Vector load_vector(const T* row, int64_t first, int64_t size) {
  Vector result;
  if constexpr (kAligned) {
    constexpr int kPerChunk = 16 / sizeof(T);
#pragma unroll
    for (int chunk = 0; chunk < kVector / kPerChunk; ++chunk) {
      const auto loaded =
          *reinterpret_cast<const detail::Chunk<T>*>(row + first + chunk * kPerChunk);
#pragma unroll
      for (int i = 0; i < kPerChunk; ++i) {
        result.value[chunk * kPerChunk + i] = static_cast<float>(loaded.element[i]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      result.value[i] = first + i < size ? static_cast<float>(row[first + i]) : 0.0f;
    }
  }
  return result;
}

/// The counterpart; elements past the end are not written.
template <bool kAligned, typename T>
__device__ inline void store_vector(T* row, int64_t first, int64_t size, const Vector& vector) {
  if constexpr (kAligned) {
    constexpr int kPerChunk = 16 / sizeof(T);
#pragma unroll
    for (int chunk = 0; chunk < kVector / kPerChunk; ++chunk) {
      detail::Chunk<T> stored;
#pragma unroll
      for (int i = 0; i < kPerChunk; ++i) {
        stored.element[i] = static_cast<T>(vector.value[chunk * kPerChunk + i]);
      }
      *reinterpret_cast<detail::Chunk<T>*>(row + first + chunk * kPerChunk) = stored;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (first + i < size) row[first + i] = static_cast<T>(vector.value[i]);
    }
  }
}

/// Calls body.operator()<kAligned>(begin, end) for the parts of flat arrays of n elements. The last
/// vector may be short, which only the unaligned path can take; so it takes it alone.
template <typename Body>
void split_by_alignment(int64_t n, std::initializer_list<const void*> arrays, Body&& body) {
  const int64_t whole = rows_are_aligned(0, arrays) ? n / kVector * kVector : 0;
  if (whole > 0) body.template operator()<true>(0, whole);
  if (whole < n) body.template operator()<false>(whole, n);
}

/// Calls body.operator()<flag>().
template <typename Body>
void dispatch_flag(bool flag, Body&& body) {
  if (flag) {
    body.template operator()<true>();
  } else {
    body.template operator()<false>();
  }
}

}  // namespace mirabelle::backend
