#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

enum class ReduceOp { kSum, kMax, kMin };

/// A collective under way. Its tensors belong to it until `wait` returns; it must not outlive its
/// communicator.
class PendingCollective {
 public:
  virtual ~PendingCollective() = default;
  /// Lets a host-driven transport make progress; cheap, never blocks.
  virtual void poll() = 0;
  /// Later work on `stream` sees the result.
  virtual void wait(const Stream& stream) = 0;
};

/// A group of ranks. Every rank of the group must make the same calls in the same order;
/// collectives may be waited for in any. Tensors must live in memory that the definition can move
/// (host memory here). All operations are in stream order on `stream`; on host memory they are done
/// when the call, or the wait, returns. A group of one does nothing but copy. Supported dtypes:
/// all. Failures of the transport throw Error.
///
/// Over MPI (staged too), and over NCCL if it is reproducible, the ranks' operands x_0, x_1, ...
/// are reduced in one binary tree, so results do not depend on timing or on how a tensor is cut: of
/// more than one operand the first 2^k (the largest power of two below their number) are reduced by
/// themselves, the rest by themselves, then both. bfloat16 is added in float32 and rounded once.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;  ///< for logs: "self", "mpi"
  /// What the group is for, in messages: "world", "data-parallel".
  const std::string& group_name() const { return group_name_; }

  /// x = op over ranks of x, elementwise, in place.
  void all_reduce(const TensorView& x, ReduceOp op, const Stream& stream) const {
    start_all_reduce(x, op, stream)->wait(stream);
  }
  /// out [n] = this rank's part of the op over ranks of x [size * n]. out may be that part of x.
  void reduce_scatter(const TensorView& out, const TensorView& x, ReduceOp op,
                      const Stream& stream) const {
    start_reduce_scatter(out, x, op, stream)->wait(stream);
  }
  /// out [size * n] = the ranks' x [n], in rank order. x may be this rank's part of out.
  void all_gather(const TensorView& out, const TensorView& x, const Stream& stream) const {
    start_all_gather(out, x, stream)->wait(stream);
  }

  /// The same, under way while the caller computes.
  virtual std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                              const Stream& stream) const = 0;
  virtual std::unique_ptr<PendingCollective> start_reduce_scatter(const TensorView& out,
                                                                  const TensorView& x, ReduceOp op,
                                                                  const Stream& stream) const = 0;
  virtual std::unique_ptr<PendingCollective> start_all_gather(const TensorView& out,
                                                              const TensorView& x,
                                                              const Stream& stream) const = 0;

  virtual void broadcast(const TensorView& x, int root, const Stream& stream) const = 0;
  virtual void send(const TensorView& x, int destination, const Stream& stream) const = 0;
  virtual void recv(const TensorView& x, int source, const Stream& stream) const = 0;
  virtual void barrier() const = 0;
  /// Waits for all work on `stream`, of which collectives may be a part: throws if the group broke
  /// meanwhile, where stream.synchronize() would wait for ever.
  virtual void synchronize(const Stream& stream) const { stream.synchronize(); }
  /// Groups of the ranks with the same colour, ordered by key, then by rank.
  virtual std::unique_ptr<Communicator> split(int color, int key,
                                              const std::string& group_name) const = 0;

  /// The bytes that this rank has sent to others so far, by operation: "all_reduce",
  /// "reduce_scatter", "all_gather", "broadcast" (its operand once, by the root), "send".
  virtual std::map<std::string, int64_t> traffic() const { return {}; }

 protected:
  explicit Communicator(std::string group_name = "world") : group_name_(std::move(group_name)) {}

 private:
  std::string group_name_;
};

/// A group of one.
std::unique_ptr<Communicator> make_self_communicator();

/// Host memory over MPI, on a duplicate of MPI_COMM_WORLD. MpiSession must be alive. Longer tensors
/// travel in messages of `max_message_elements`, because MPI counts are ints; tests make it small.
/// In every phase of a collective a rank sends each other rank only what that one needs:
/// (size - 1) / size of the whole. Of an all-reduce of up to 4 KiB it sends everything to all,
/// which takes one phase instead of two.
std::unique_ptr<Communicator> make_mpi_communicator(int64_t max_message_elements = 1 << 27);

/// A communicator of host memory that moves GPU memory too, by way of the host: any number of ranks
/// can share a GPU. It waits for the stream and allocates, so it is for tests and for machines with
/// fewer GPUs than ranks.
std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host);

/// out [n] = the sum of the rows of x [count, n] in the tree of Communicator, on a GPU: what
/// mirabelle/kernels/reduce.h has, which comm does not know.
using TreeSum =
    std::function<void(const TensorView& out, const TensorView& x, const Stream& stream)>;

/// GPU memory over NCCL, host memory over the communicator of host memory that it takes, which also
/// carries NCCL's ID. Every rank has a GPU of its own, chosen before (select_cuda_device).
/// Collectives run on a stream of their own, in order with the caller's; a failure in the
/// background is thrown by the next call. NCCL chooses the order of sums, unless there is a
/// `tree_sum`: then operands of float32 and bfloat16 are sent to the piece's owner, which adds them
/// by it, through a workspace of up to 64 MiB that the first sums allocate. Its traffic is what a
/// ring would send. Collective.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     TreeSum tree_sum);

/// MPI_Init and MPI_Finalize. One per process, made first in `main`, outlives every communicator.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
};

/// Ends all ranks of the job with this exit status; for `main`'s last resort after an Error, so
/// that no peer waits in a collective for ever. With one rank it only exits.
[[noreturn]] void abort_job(int exit_status);

/// "Open MPI v4.1.4", of the library that is loaded.
std::string mpi_version();
/// "2.27.7", of the library that is loaded; "" in a build without NCCL.
std::string nccl_version();

// Small host-side messages, over any communicator whose tensors may be host memory.

/// The same text on every rank: root's.
std::string broadcast_text(const Communicator& communicator, const std::string& text, int root);
/// Every rank's text, in rank order, on every rank.
std::vector<std::string> all_gather_texts(const Communicator& communicator,
                                          const std::string& text);

}  // namespace mirabelle
