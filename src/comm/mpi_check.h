#pragma once

#define OMPI_SKIP_MPICXX 1  // Open MPI would declare its former C++ interface, in another library
#include <mpi.h>

#include <string>

#include "mirabelle/core/error.h"

namespace mirabelle {

inline std::string mpi_error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return "error " + std::to_string(code);
  return {text, static_cast<size_t>(length)};
}

}  // namespace mirabelle

/// Throws Error if the call fails. Only fires on communicators that have MPI_ERRORS_RETURN.
#define MPI_CHECK(call)                                                                           \
  do {                                                                                            \
    const int mpi_code = (call);                                                                  \
    MIRABELLE_CHECK(mpi_code == MPI_SUCCESS, #call, ": ", ::mirabelle::mpi_error_text(mpi_code)); \
  } while (false)
