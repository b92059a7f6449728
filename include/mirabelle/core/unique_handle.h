#pragma once

#include <utility>

namespace mirabelle {

/// Owns one handle of a C library: move-only, equal to `Null` after a move, destroyed once.
template <typename Handle, auto Destroy, Handle Null = Handle{}>
class UniqueHandle {
 public:
  UniqueHandle() = default;
  explicit UniqueHandle(Handle handle) : handle_(handle) {}
  UniqueHandle(UniqueHandle&& other) noexcept : handle_(std::exchange(other.handle_, Null)) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~UniqueHandle() {
    if (handle_ != Null) Destroy(handle_);
  }

  Handle get() const { return handle_; }
  Handle release() { return std::exchange(handle_, Null); }
  explicit operator bool() const { return handle_ != Null; }

 private:
  Handle handle_ = Null;
};

}  // namespace mirabelle
