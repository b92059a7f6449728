#pragma once

#include "mirabelle/comm/communicator.h"

namespace mirabelle {

/// Throws unless this is memory that the host can reach.
inline void check_host(const char* operation, const TensorView& x) {
  MIRABELLE_CHECK(x.device == Device::kCpu, operation, " moves host memory, not ",
                  to_string(x.device), " memory");
}

/// Throws unless `whole` holds as many elements of part's dtype, on its device, as `size` parts.
inline void check_shares(const char* operation, const TensorView& whole, const TensorView& part,
                         int size) {
  MIRABELLE_CHECK(whole.device == part.device, operation, " between ", to_string(whole.device),
                  " and ", to_string(part.device));
  MIRABELLE_CHECK(whole.dtype == part.dtype, operation, " between ", to_string(whole.dtype),
                  " and ", to_string(part.dtype));
  MIRABELLE_CHECK(whole.num_elements() == size * part.num_elements(), operation, " over ", size,
                  " ranks with ", part.num_elements(), " elements each wants ",
                  size * part.num_elements(), " elements in all, not ", whole.num_elements());
}

/// The same in memory that the host can reach.
inline void check_parts(const char* operation, const TensorView& whole, const TensorView& part,
                        int size) {
  check_host(operation, whole);
  check_host(operation, part);
  check_shares(operation, whole, part, size);
}

inline void check_peer(const char* operation, int peer, int size) {
  MIRABELLE_CHECK(0 <= peer && peer < size, operation, " names rank ", peer, " in a group of ",
                  size);
}

}  // namespace mirabelle
