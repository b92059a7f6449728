#pragma once

#include <cublasLt.h>

#include "mirabelle/core/error.h"

/// Throws an Error with cuBLASLt's own words unless the call succeeds.
#define CUBLAS_CHECK(call)                                                                  \
  do {                                                                                      \
    const cublasStatus_t cublas_status = (call);                                            \
    MIRABELLE_CHECK(cublas_status == CUBLAS_STATUS_SUCCESS, #call ": ",                     \
                    cublasLtGetStatusString(cublas_status), " at " __FILE__ ":", __LINE__); \
  } while (false)
