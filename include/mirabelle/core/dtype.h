#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "mirabelle/core/bfloat16.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

enum class DType { kFloat32, kFloat64, kBFloat16, kInt32, kInt64, kUint8 };

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kFloat64;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::kBFloat16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kInt32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kInt64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::kUint8;
};
template <typename T>
inline constexpr DType kDTypeOf = DTypeOf<T>::value;

/// What statistics, sums and parameter gradients of T tensors are kept in: float32 for bfloat16,
/// and the type itself for the others.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
inline DType wide(DType dtype) { return dtype == DType::kBFloat16 ? DType::kFloat32 : dtype; }

inline int64_t size_in_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kBFloat16:
      return 2;
    case DType::kUint8:
      return 1;
  }
  throw_error(ErrorKind::kOther, "unknown dtype ", static_cast<int>(dtype));
}

/// The dtype of a model's weights by its name in the configuration; throws a kUsage Error that
/// names the `key`.
inline DType model_dtype(const char* key, const std::string& name) {
  MIRABELLE_CHECK_USAGE(name == "float32" || name == "bfloat16", key,
                        " must be float32 or bfloat16, not '", name, "'");
  return name == "bfloat16" ? DType::kBFloat16 : DType::kFloat32;
}

inline const char* to_string(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
    case DType::kUint8:
      return "uint8";
  }
  return "unknown";
}

}  // namespace mirabelle
