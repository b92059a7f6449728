#pragma once

#include <cudnn.h>

#include <string>

#include "mirabelle/core/error.h"

namespace mirabelle::backend {

/// What cuDNN says of a status that it just returned, in its own words.
inline std::string cudnn_reason(cudnnStatus_t status) {
  char details[1024] = "";
  cudnnGetLastErrorString(details, sizeof(details));
  return std::string(cudnnGetErrorString(status)) + (details[0] ? ", " : "") + details;
}

}  // namespace mirabelle::backend

/// Throws an Error with cuDNN's own words unless the call succeeds.
#define CUDNN_CHECK(call)                                                                  \
  do {                                                                                     \
    const cudnnStatus_t cudnn_status = (call);                                             \
    MIRABELLE_CHECK(cudnn_status == CUDNN_STATUS_SUCCESS, #call ": ",                      \
                    ::mirabelle::backend::cudnn_reason(cudnn_status), " at " __FILE__ ":", \
                    __LINE__);                                                             \
  } while (false)
