#pragma once

#include <cstring>
#include <memory>

#include "mirabelle/comm/communicator.h"

namespace mirabelle {

/// A collective that was done when it started, as all are in a group of one.
class DoneCollective : public PendingCollective {
 public:
  void poll() override {}
  void wait(const Stream&) override {}
};

/// out = x, in host memory; they may be the same.
inline void copy_on_host(const TensorView& out, const TensorView& x) {
  if (!x.empty() && out.data != x.data) {
    std::memcpy(out.data, x.data, static_cast<size_t>(x.bytes()));
  }
}

}  // namespace mirabelle
