#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>
#include <type_traits>
#include <vector>

#include "mirabelle/core/device.h"
#include "mirabelle/core/dtype.h"

namespace mirabelle {

/// Up to five extents, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 5;
  Shape() = default;
  Shape(std::initializer_list<int64_t> extents) : Shape(of({extents.begin(), extents.size()})) {}
  static Shape of(std::span<const int64_t> extents) {
    MIRABELLE_CHECK(extents.size() <= kMaxRank, "a shape has at most ", kMaxRank, " extents, not ",
                    extents.size());
    Shape shape;
    for (int64_t extent : extents) shape.extents_[shape.rank_++] = extent;
    return shape;
  }
  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return extents_[axis]; }
  int64_t num_elements() const {
    int64_t product = 1;
    for (int axis = 0; axis < rank_; ++axis) product *= extents_[axis];
    return product;
  }
  bool operator==(const Shape&) const = default;

  /// The same but for the outermost extent.
  Shape with_outer(int64_t extent) const {
    Shape changed = *this;
    changed.extents_[0] = extent;
    return changed;
  }
  /// Without the outermost extent.
  Shape inner() const {
    Shape rest;
    for (int axis = 1; axis < rank_; ++axis) rest.extents_[rest.rank_++] = extents_[axis];
    return rest;
  }

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int axis = 0; axis < shape.rank(); ++axis) out << (axis ? ", " : "") << shape[axis];
  return out << ']';
}

/// A cheap, non-owning, contiguous, row-major view of typed memory on one device. A default view
/// has null data and stands for an absent operand.
struct TensorView {
  void* data = nullptr;
  Shape shape;
  DType dtype = DType::kFloat32;
  Device device = Device::kCpu;

  int64_t num_elements() const { return shape.num_elements(); }
  int64_t bytes() const { return num_elements() * size_in_bytes(dtype); }
  bool empty() const { return num_elements() == 0; }
  explicit operator bool() const { return data != nullptr; }

  /// The elements; throws if T is not the view's dtype.
  template <typename T>
  T* as() const {
    MIRABELLE_CHECK(kDTypeOf<T> == dtype, "wanted a ", to_string(kDTypeOf<T>), " tensor, got ",
                    to_string(dtype));
    return static_cast<T*>(data);
  }

  /// Rows [begin, end) of the outermost axis.
  TensorView rows(int64_t begin, int64_t end) const {
    MIRABELLE_CHECK(shape.rank() > 0 && 0 <= begin && begin <= end && end <= shape[0], "rows [",
                    begin, ", ", end, ") of a tensor of shape ", shape);
    const int64_t row_elements = shape[0] == 0 ? 0 : num_elements() / shape[0];
    TensorView view = *this;
    view.shape = shape.with_outer(end - begin);
    view.data = static_cast<char*>(data) + begin * row_elements * size_in_bytes(dtype);
    return view;
  }

  /// Element i of the outermost axis, which is no longer there.
  TensorView slice(int64_t i) const {
    TensorView view = rows(i, i + 1);
    view.shape = shape.inner();
    return view;
  }

  /// The first elements, as a tensor of this shape.
  TensorView first(const Shape& new_shape) const {
    MIRABELLE_CHECK(new_shape.num_elements() <= num_elements(), "a tensor of shape ", shape,
                    " does not hold one of ", new_shape);
    TensorView view = *this;
    view.shape = new_shape;
    return view;
  }

  /// The same elements under another shape of the same size.
  TensorView reshaped(const Shape& new_shape) const {
    MIRABELLE_CHECK(new_shape.num_elements() == num_elements(), "a tensor of shape ", shape,
                    " cannot be seen as ", new_shape);
    TensorView view = *this;
    view.shape = new_shape;
    return view;
  }
};

/// A view of host memory that the caller owns, e.g. a std::vector's.
template <typename T>
TensorView view_of(T* data, const Shape& shape) {
  return {const_cast<std::remove_const_t<T>*>(data), shape, kDTypeOf<std::remove_const_t<T>>,
          Device::kCpu};
}
template <typename T>
TensorView view_of(const std::vector<T>& values) {
  return view_of(values.data(), {static_cast<int64_t>(values.size())});
}

}  // namespace mirabelle
