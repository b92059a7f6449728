#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/buffer.h"
#include "mpi_check.h"

namespace mirabelle {

class MpiCollective;

/// The collectives of all groups that are under way on this rank. Whoever waits for one must move
/// the others on as well: a peer may wait for those first.
class MpiProgress {
 public:
  void poll() const;

 private:
  friend class MpiCollective;
  std::vector<MpiCollective*> under_way_;
};

/// What the collectives of one group share.
struct MpiGroup {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int size = 1;
  std::string name;
  int64_t max_message_elements = 1;
  std::shared_ptr<MpiProgress> progress;
  std::vector<Buffer> workspaces;  // not in use
  int next_tag = 1;                // 0 is that of send and recv

  /// Of a message that is received and then reduced: small enough that the messages of all ranks
  /// stay in the cache meanwhile.
  int64_t chunk_bytes() const;
};

/// A collective over messages between all pairs of ranks. The whole tensor is cut into one piece
/// for each rank, its owner. First, if it reduces, every rank sends every piece to its owner, which
/// reduces what it gets; then, if it gathers, every rank sends its own piece to all others. Pieces
/// are worked on chunk by chunk, several chunks at a time.
class MpiCollective : public PendingCollective {
 public:
  struct Task {
    const char* operation;
    TensorView whole;
    int64_t piece_elements = 0;  // of every piece but the last ones, which may be shorter or empty
    bool all_own_all = false;    // every rank's piece is the whole
    bool reduces = false, gathers = false;
    ReduceOp op = ReduceOp::kSum;
    void* reduced = nullptr;  // where this rank's piece goes when it is reduced; null: in its place
  };

  /// Starts it. `bytes_sent` grows with every message.
  MpiCollective(MpiGroup& group, const Task& task, int64_t& bytes_sent);
  ~MpiCollective() override;

  void poll() override;
  void wait(const Stream& stream) override;

 private:
  /// A chunk under way, and after it every kMaxSlots-th. The chunks of a slot are sent one after
  /// the other, so that they need no tags of their own.
  struct Slot {
    int64_t chunk = 0;
    bool gathering = false;
    std::vector<MPI_Request> requests;
  };
  struct Part {
    char* data;
    int64_t elements;
  };
  static constexpr int64_t kMaxSlots = 4;
  static constexpr int kNumTags = 8000;  // collectives under way at a time; MPI promises 32767 tags

  Part part(int owner, int64_t chunk) const;
  char* received(const Slot& slot, int step) const;
  int tag(const Slot& slot) const;
  void start_chunk(Slot& slot);
  void start_reducing(Slot& slot);
  void start_gathering(Slot& slot);
  void reduce(const Slot& slot) const;
  void finish_phase(Slot& slot);
  void send(Slot& slot, int peer, const Part& part);
  void receive(Slot& slot, int peer, char* data, int64_t elements);
  /// The peers in an order that differs from rank to rank, so that not all send to the same one:
  /// step 1 .. size - 1.
  int peer_after(int step) const { return (group_.rank + step) % group_.size; }

  MpiGroup& group_;
  Task task_;
  int64_t& bytes_sent_;
  int64_t element_bytes_, chunk_elements_, num_chunks_, chunks_left_;
  int first_tag_;
  std::vector<Slot> slots_;
  Buffer workspace_;
};

}  // namespace mirabelle
