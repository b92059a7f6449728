#include "tree_reduce.h"

#include <algorithm>
#include <bit>

namespace mirabelle {
namespace {

/// Elements that are reduced together: all of their partial results stay in the L1 cache.
constexpr int64_t kBlock = 512;

struct Sum {
  template <typename T>
  T operator()(T a, T b) const {
    return static_cast<T>(a + b);
  }
};
struct Max {
  template <typename T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};
struct Min {
  template <typename T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};

/// out[i] = op over `count` operands at begin + i, for i < n <= kBlock.
template <typename T, typename Op>
void reduce_block(Wide<T>* out, const void* const* operands, int count, int64_t begin, int64_t n,
                  Op op) {
  if (count == 1) {
    std::copy_n(static_cast<const T*>(operands[0]) + begin, n, out);
    return;
  }
  const int left = static_cast<int>(std::bit_floor(static_cast<unsigned>(count - 1)));
  Wide<T> right[kBlock];
  reduce_block<T>(out, operands, left, begin, n, op);
  reduce_block<T>(right, operands + left, count - left, begin, n, op);
  for (int64_t i = 0; i < n; ++i) out[i] = op(out[i], right[i]);
}

template <typename T, typename Op>
void reduce(void* out, const std::vector<const void*>& operands, int64_t n, Op op) {
  Wide<T> block[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t length = std::min(kBlock, n - begin);
    reduce_block<T>(block, operands.data(), static_cast<int>(operands.size()), begin, length, op);
    T* const to = static_cast<T*>(out) + begin;
    for (int64_t i = 0; i < length; ++i) to[i] = T(block[i]);
  }
}

template <typename T>
void reduce(void* out, const std::vector<const void*>& operands, int64_t n, ReduceOp op) {
  if (op == ReduceOp::kSum) reduce<T>(out, operands, n, Sum());
  if (op == ReduceOp::kMax) reduce<T>(out, operands, n, Max());
  if (op == ReduceOp::kMin) reduce<T>(out, operands, n, Min());
}

}  // namespace

void reduce_in_tree(void* out, const std::vector<const void*>& operands, int64_t n, DType dtype,
                    ReduceOp op) {
  switch (dtype) {
    case DType::kFloat32:
      return reduce<float>(out, operands, n, op);
    case DType::kFloat64:
      return reduce<double>(out, operands, n, op);
    case DType::kBFloat16:
      return reduce<BFloat16>(out, operands, n, op);
    case DType::kInt32:
      return reduce<int32_t>(out, operands, n, op);
    case DType::kInt64:
      return reduce<int64_t>(out, operands, n, op);
    case DType::kUint8:
      return reduce<uint8_t>(out, operands, n, op);
  }
}

}  // namespace mirabelle
