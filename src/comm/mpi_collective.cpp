#include "mpi_collective.h"

#include <algorithm>

#include "mirabelle/core/activity.h"
#include "tree_reduce.h"

namespace mirabelle {
namespace {

constexpr int64_t kMinChunkBytes = 32 << 10;
constexpr int64_t kMaxChunkBytes = 256 << 10;
constexpr int64_t kChunkBytesOfAllRanks = 1 << 20;

}  // namespace

void MpiProgress::poll() const {
  for (MpiCollective* collective : under_way_) collective->poll();
}

int64_t MpiGroup::chunk_bytes() const {
  return std::clamp(kChunkBytesOfAllRanks / size, kMinChunkBytes, kMaxChunkBytes);
}

MpiCollective::MpiCollective(MpiGroup& group, const Task& task, int64_t& bytes_sent)
    : group_(group),
      task_(task),
      bytes_sent_(bytes_sent),
      element_bytes_(size_in_bytes(task.whole.dtype)),
      chunk_elements_(std::min(group.chunk_bytes() / element_bytes_, group.max_message_elements)),
      num_chunks_((task.piece_elements + chunk_elements_ - 1) / chunk_elements_),
      chunks_left_(num_chunks_),
      first_tag_(group.next_tag),
      slots_(std::min(kMaxSlots, num_chunks_)) {
  group.next_tag = group.next_tag % (kNumTags * kMaxSlots) + kMaxSlots;
  if (task.reduces && group.workspaces.empty()) {
    workspace_ = Buffer(kMaxSlots * (group.size - 1) * group.chunk_bytes(), Device::kCpu);
  } else if (task.reduces) {
    workspace_ = std::move(group.workspaces.back());
    group.workspaces.pop_back();
  }
  group.progress->under_way_.push_back(this);
  for (size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].chunk = static_cast<int64_t>(i);
    start_chunk(slots_[i]);
  }
}

MpiCollective::~MpiCollective() {
  std::erase(group_.progress->under_way_, this);
  if (chunks_left_ > 0) {
    // an exception ends the process; until then messages may come
    new Buffer(std::move(workspace_));
  } else if (task_.reduces) {
    group_.workspaces.push_back(std::move(workspace_));
  }
}

void MpiCollective::poll() {
  for (Slot& slot : slots_) {
    while (slot.chunk < num_chunks_) {
      int done = 0;
      MPI_CHECK(MPI_Testall(static_cast<int>(slot.requests.size()), slot.requests.data(), &done,
                            MPI_STATUSES_IGNORE));
      if (!done) break;
      finish_phase(slot);
    }
  }
}

void MpiCollective::wait(const Stream&) {
  if (chunks_left_ == 0) return;
  const Activity activity(task_.operation, group_.name);
  while (chunks_left_ > 0) group_.progress->poll();
}

void MpiCollective::start_chunk(Slot& slot) {
  slot.gathering = !task_.reduces;
  if (task_.reduces) {
    start_reducing(slot);
  } else {
    start_gathering(slot);
  }
}

void MpiCollective::finish_phase(Slot& slot) {
  slot.requests.clear();
  if (!slot.gathering) {
    reduce(slot);
    if (task_.gathers) {
      slot.gathering = true;
      start_gathering(slot);
      return;
    }
  }
  --chunks_left_;
  slot.chunk += kMaxSlots;
  if (slot.chunk < num_chunks_) start_chunk(slot);
}

void MpiCollective::start_reducing(Slot& slot) {
  const Part mine = part(group_.rank, slot.chunk);
  for (int step = 1; step < group_.size; ++step) {
    receive(slot, peer_after(step), received(slot, step), mine.elements);
  }
  for (int step = 1; step < group_.size; ++step) {
    send(slot, peer_after(step), part(peer_after(step), slot.chunk));
  }
}

void MpiCollective::start_gathering(Slot& slot) {
  const Part mine = part(group_.rank, slot.chunk);
  for (int step = 1; step < group_.size; ++step) {
    const Part theirs = part(peer_after(step), slot.chunk);
    receive(slot, peer_after(step), theirs.data, theirs.elements);
  }
  for (int step = 1; step < group_.size; ++step) send(slot, peer_after(step), mine);
}

void MpiCollective::reduce(const Slot& slot) const {
  const Part mine = part(group_.rank, slot.chunk);
  std::vector<const void*> operands(group_.size);
  operands[group_.rank] = mine.data;
  for (int step = 1; step < group_.size; ++step) {
    operands[peer_after(step)] = received(slot, step);
  }
  const int64_t bytes_before = slot.chunk * chunk_elements_ * element_bytes_;
  void* const out = task_.reduced ? static_cast<char*>(task_.reduced) + bytes_before : mine.data;
  reduce_in_tree(out, operands, mine.elements, task_.whole.dtype, task_.op);
}

/// What the chunk is of the owner's piece.
MpiCollective::Part MpiCollective::part(int owner, int64_t chunk) const {
  const int64_t num_elements = task_.whole.num_elements();
  const int64_t piece_begin = task_.all_own_all ? 0 : owner * task_.piece_elements;
  const int64_t piece_end = std::min(piece_begin + task_.piece_elements, num_elements);
  const int64_t begin = std::min(piece_begin + chunk * chunk_elements_, num_elements);
  const int64_t end = std::min(begin + chunk_elements_, piece_end);
  return {static_cast<char*>(task_.whole.data) + begin * element_bytes_,
          std::max<int64_t>(end - begin, 0)};
}

/// Where the peer's part of the slot's chunk is received.
char* MpiCollective::received(const Slot& slot, int step) const {
  const int64_t place = slot.chunk % kMaxSlots * (group_.size - 1) + step - 1;
  return static_cast<char*>(workspace_.data()) + place * group_.chunk_bytes();
}

int MpiCollective::tag(const Slot& slot) const {
  return first_tag_ + static_cast<int>(slot.chunk % kMaxSlots);
}

void MpiCollective::send(Slot& slot, int peer, const Part& part) {
  if (part.elements == 0) return;
  const int64_t bytes = part.elements * element_bytes_;
  slot.requests.push_back(MPI_REQUEST_NULL);
  MPI_CHECK(MPI_Isend(part.data, static_cast<int>(bytes), MPI_BYTE, peer, tag(slot), group_.comm,
                      &slot.requests.back()));
  bytes_sent_ += bytes;
}

void MpiCollective::receive(Slot& slot, int peer, char* data, int64_t elements) {
  if (elements == 0) return;
  slot.requests.push_back(MPI_REQUEST_NULL);
  MPI_CHECK(MPI_Irecv(data, static_cast<int>(elements * element_bytes_), MPI_BYTE, peer, tag(slot),
                      group_.comm, &slot.requests.back()));
}

}  // namespace mirabelle
