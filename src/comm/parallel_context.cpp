#include "mirabelle/comm/parallel_context.h"

namespace mirabelle {

ParallelContext::ParallelContext(const Communicator& world, int64_t tensor_parallel_size)
    : world_(world) {
  MIRABELLE_CHECK_USAGE(tensor_parallel_size > 0 && world.size() % tensor_parallel_size == 0,
                        "parallel.tensor_parallel_size ", tensor_parallel_size,
                        " does not divide the ", world.size(), " ranks");
  const int data_parallel_rank = world.rank() / static_cast<int>(tensor_parallel_size);
  const int tensor_parallel_rank = world.rank() % static_cast<int>(tensor_parallel_size);
  tensor_ = world.split(data_parallel_rank, tensor_parallel_rank, "tensor-parallel");
  data_ = world.split(tensor_parallel_rank, data_parallel_rank, "data-parallel");
}

}  // namespace mirabelle
