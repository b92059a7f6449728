#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "device_language.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Saves the registers that a call must keep, and the stack, in *from; goes on where `to` was saved.
extern "C" void switch_stack(void** from, void* to);
asm(R"(
.text
.globl switch_stack
.type switch_stack,@function
switch_stack:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");

namespace emulation {
namespace {

constexpr int kSavedRegisters = 6;
constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kSharedBytes = 227 << 10;  // what a block of an H100 may have
constexpr int kMaxThreads = 1024, kWarp = 32;

struct Fiber {
  char* stack = nullptr;
  void* saved = nullptr;
  bool done = true;
  uint3 index;
};

/// Opens when all of its threads that still run have arrived.
struct Barrier {
  int running = 0, arrived = 0;
  uint64_t times_opened = 0;
  void open_if_complete() {
    if (running == 0 || arrived < running) return;
    arrived = 0;
    ++times_opened;
  }
};

std::vector<Fiber> fibers(kMaxThreads);
void* scheduler = nullptr;
int current = 0;
const std::function<void()>* thread_body = nullptr;
Barrier block_threads, warp_threads[kMaxThreads / kWarp];
alignas(16) unsigned char slots[kMaxThreads][16];
alignas(1024) unsigned char shared_memory[kSharedBytes];

void run_thread() {
  (*thread_body)();
  fibers[current].done = true;
  for (Barrier* barrier : {&block_threads, &warp_threads[current / kWarp]}) {
    --barrier->running;
    barrier->open_if_complete();
  }
  void* never_used;
  switch_stack(&never_used, scheduler);
}

void wait_at(Barrier& barrier) {
  const uint64_t before = barrier.times_opened;
  ++barrier.arrived;
  barrier.open_if_complete();
  while (barrier.times_opened == before) switch_stack(&fibers[current].saved, scheduler);
}

void start(Fiber& fiber) {
  if (!fiber.stack) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fiber.stack = static_cast<char*>(memory);
  }
  auto** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
  *--top = nullptr;  // where run_thread would return to
  *--top = reinterpret_cast<void*>(&run_thread);
  top -= kSavedRegisters;
  fiber.saved = top;
  fiber.done = false;
}

void run_block(int num_threads) {
  block_threads = {num_threads};
  for (int warp = 0; warp * kWarp < num_threads; ++warp) {
    warp_threads[warp] = {std::min(kWarp, num_threads - warp * kWarp)};
  }
  for (int i = 0; i < num_threads; ++i) {
    start(fibers[i]);
    const unsigned x = i % blockDim.x, rest = i / blockDim.x;
    fibers[i].index = {x, rest % blockDim.y, rest / blockDim.y};
  }
  while (block_threads.running > 0) {
    for (current = 0; current < num_threads; ++current) {
      if (fibers[current].done) continue;
      threadIdx = fibers[current].index;
      switch_stack(&scheduler, fibers[current].saved);
    }
  }
}

}  // namespace

void block_barrier() { wait_at(block_threads); }
void warp_barrier() { wait_at(warp_threads[current / kWarp]); }
void* slot_of_lane(unsigned lane) { return slots[current / kWarp * kWarp + lane]; }
unsigned char* dynamic_shared_memory() { return shared_memory; }

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const unsigned num_threads = block.x * block.y * block.z;
  if (num_threads == 0 || num_threads > kMaxThreads || grid.x == 0 || grid.x > INT32_MAX ||
      grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535 ||
      shared_bytes > kSharedBytes) {
    std::fprintf(stderr, "a GPU would refuse %u x %u x %u blocks of %u threads with %zu bytes\n",
                 grid.x, grid.y, grid.z, num_threads, shared_bytes);
    std::abort();
  }
  blockDim = block;
  gridDim = grid;
  thread_body = &thread;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        std::memset(shared_memory, 0xFF, shared_bytes);
        run_block(static_cast<int>(num_threads));
      }
    }
  }
}

}  // namespace emulation
