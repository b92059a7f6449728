#pragma once

namespace cub {

template <typename T, int kThreads>
class BlockScan {
 public:
  struct TempStorage {
    T value[kThreads];
  };
  explicit BlockScan(TempStorage& memory) : memory_(memory) {}

  void ExclusiveSum(T value, T& before, T& total) {
    memory_.value[threadIdx.x] = value;
    __syncthreads();
    before = total = 0;
    for (unsigned i = 0; i < kThreads; ++i) {
      if (i == threadIdx.x) before = total;
      total += memory_.value[i];
    }
  }

 private:
  TempStorage& memory_;
};

}  // namespace cub
