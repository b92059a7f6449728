#pragma once

#include <string>

#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

struct ParallelConfig {
  int64_t tensor_parallel_size = 1;
  bool sequence_parallel = false;
  int64_t zero_stage = 0;
  int64_t gradient_bucket_mib = 8;
  std::string communicator = "auto";
  double fault_timeout_seconds = 600;

  void visit(ConfigFields& fields) {
    fields.field("tensor_parallel_size", tensor_parallel_size,
                 "ranks that share one copy of the model; divides the number of ranks, of which "
                 "the others are data-parallel");
    fields.field("sequence_parallel", sequence_parallel,
                 "tensor-parallel ranks also share the tokens between the split layers: less "
                 "memory for activations");
    fields.field("zero_stage", zero_stage,
                 "what data-parallel ranks share instead of each having all of it: 0 nothing, 1 "
                 "the optimizer's state, 2 also the gradients");
    fields.field(
        "communicator", communicator,
        "of GPU memory: nccl (a GPU for every rank), staged through the host by MPI (slower; ranks "
        "may share a GPU), or auto: nccl if there is more than one rank");
    fields.field("gradient_bucket_mib", gradient_bucket_mib,
                 "gradients are reduced over the data-parallel ranks in pieces of this size, while "
                 "the backward pass runs");
    fields.field("fault_timeout_seconds", fault_timeout_seconds,
                 "a rank that waits so long for others ends the job and says for what; 0 = never");
  }

  void check() const {
    MIRABELLE_CHECK_USAGE(
        communicator == "auto" || communicator == "nccl" || communicator == "staged",
        "parallel.communicator must be auto, nccl or staged, not '", communicator, "'");
    MIRABELLE_CHECK_USAGE(tensor_parallel_size > 0,
                          "parallel.tensor_parallel_size must be positive, not ",
                          tensor_parallel_size);
    MIRABELLE_CHECK_USAGE(0 <= zero_stage && zero_stage <= 2,
                          "parallel.zero_stage must be 0, 1 or 2, not ", zero_stage);
    MIRABELLE_CHECK_USAGE(gradient_bucket_mib > 0,
                          "parallel.gradient_bucket_mib must be positive, not ",
                          gradient_bucket_mib);
    MIRABELLE_CHECK_USAGE(fault_timeout_seconds >= 0,
                          "parallel.fault_timeout_seconds must not be negative, is ",
                          fault_timeout_seconds);
  }
};

}  // namespace mirabelle
