#pragma once

#include <string>

#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

struct ParallelConfig {
  int64_t tensor_parallel_size = 1;
  int64_t gradient_bucket_mib = 8;
  std::string communicator = "auto";

  void visit(ConfigFields& fields) {
    fields.field("tensor_parallel_size", tensor_parallel_size,
                 "ranks that share one copy of the model (1 so far)");
    fields.field(
        "communicator", communicator,
        "of GPU memory: nccl (a GPU for every rank), staged through the host by MPI (ranks "
        "may share a GPU), or auto: nccl where there are enough GPUs");
    fields.field("gradient_bucket_mib", gradient_bucket_mib,
                 "gradients are reduced over the data-parallel ranks in pieces of this size, while "
                 "the backward pass runs");
  }

  void check() const {
    MIRABELLE_CHECK_USAGE(
        communicator == "auto" || communicator == "nccl" || communicator == "staged",
        "parallel.communicator must be auto, nccl or staged, not '", communicator, "'");
    MIRABELLE_CHECK_USAGE(tensor_parallel_size == 1,
                          "parallel.tensor_parallel_size must be 1 in this version, not ",
                          tensor_parallel_size);
    MIRABELLE_CHECK_USAGE(gradient_bucket_mib > 0,
                          "parallel.gradient_bucket_mib must be positive, not ",
                          gradient_bucket_mib);
  }
};

}  // namespace mirabelle
