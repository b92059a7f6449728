#include <nccl.h>

#include <algorithm>
#include <bit>
#include <exception>
#include <thread>

#include "check_collective.h"
#include "done_collective.h"
#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/activity.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/cuda_check.h"
#include "mirabelle/core/unique_handle.h"

#define NCCL_CHECK(call)                                                                     \
  do {                                                                                       \
    const ncclResult_t nccl_status = (call);                                                 \
    MIRABELLE_CHECK(nccl_status == ncclSuccess, #call ": ", ncclGetErrorString(nccl_status), \
                    " at " __FILE__ ":", __LINE__);                                          \
  } while (false)

namespace mirabelle {
namespace {

/// Destroying is collective, so not while an exception unwinds this rank alone; aborting is not.
void free_communicator(ncclComm_t communicator) {
  if (std::uncaught_exceptions() == 0) {
    ncclCommDestroy(communicator);
  } else {
    ncclCommAbort(communicator);
  }
}
using CommHandle = UniqueHandle<ncclComm_t, free_communicator>;

/// An event at the end of what is on the stream now.
Event end_of(const Stream& stream) {
  Event event;
  event.record(stream);
  return event;
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kBFloat16:
      return ncclBfloat16;
    case DType::kInt32:
      return ncclInt32;
    case DType::kInt64:
      return ncclInt64;
    case DType::kUint8:
      return ncclUint8;
  }
  throw_error(ErrorKind::kOther, "no NCCL type for dtype ", static_cast<int>(dtype));
}

ncclRedOp_t nccl_op(ReduceOp op) {
  return op == ReduceOp::kSum ? ncclSum : op == ReduceOp::kMax ? ncclMax : ncclMin;
}

/// Throws what went wrong in the background: a lost connection, a peer that died.
void check_background(ncclComm_t communicator) {
  ncclResult_t status = ncclSuccess;
  NCCL_CHECK(ncclCommGetAsyncError(communicator, &status));
  MIRABELLE_CHECK(status == ncclSuccess || status == ncclInProgress,
                  "NCCL failed in the background: ", ncclGetErrorString(status));
}

class NcclCollective : public PendingCollective {
 public:
  NcclCollective(ncclComm_t communicator, Event done)
      : communicator_(communicator), done_(std::move(done)) {}
  void poll() override { check_background(communicator_); }
  void wait(const Stream& stream) override { done_.hold(stream); }

 private:
  ncclComm_t communicator_;
  Event done_;
};

bool is_host(const TensorView& x) { return x.device == Device::kCpu; }

/// Of the operands of a sum that are on a rank at a time.
constexpr int64_t kMaxWorkspaceBytes = 64 << 20;

/// GPU memory goes through NCCL, on a stream of its own that starts when the caller's has come so
/// far; host memory through the host's communicator.
class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, TreeSum tree_sum)
      : Communicator(host->group_name()),
        host_(std::move(host)),
        tree_sum_(std::move(tree_sum)),
        stream_(Device::kCuda) {
    if (size() == 1) return;
    const Activity activity("setting up NCCL", group_name());
    ncclUniqueId id;
    if (rank() == 0) NCCL_CHECK(ncclGetUniqueId(&id));
    host_->broadcast(view_of(reinterpret_cast<uint8_t*>(&id), {sizeof id}), 0, Stream());
    ncclComm_t created = nullptr;
    NCCL_CHECK(ncclCommInitRank(&created, size(), id, rank()));
    nccl_ = CommHandle(created);
  }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string name() const override { return "nccl"; }

  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                      const Stream& stream) const override {
    if (is_host(x)) return host_->start_all_reduce(x, op, stream);
    if (size() == 1) return std::make_unique<DoneCollective>();
    // of a ring: all but one of `size` pieces, when they are reduced and when they are gathered
    traffic_["all_reduce"] += 2 * (size() - 1) * x.bytes() / size();
    return start(stream, [&] {
      if (is_tree_sum(x, op)) return all_reduce_in_tree(x);
      NCCL_CHECK(ncclAllReduce(x.data, x.data, x.num_elements(), nccl_type(x.dtype), nccl_op(op),
                               nccl_.get(), stream_.cuda()));
    });
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(const TensorView& out,
                                                          const TensorView& x, ReduceOp op,
                                                          const Stream& stream) const override {
    if (is_host(x)) return host_->start_reduce_scatter(out, x, op, stream);
    check_shares("reduce_scatter", x, out, size());
    if (size() == 1) return copied(out, x, stream);
    traffic_["reduce_scatter"] += (size() - 1) * out.bytes();
    return start(stream, [&] {
      if (is_tree_sum(x, op)) return reduce_scatter_in_tree(out.data, x, out.num_elements());
      NCCL_CHECK(ncclReduceScatter(x.data, out.data, out.num_elements(), nccl_type(x.dtype),
                                   nccl_op(op), nccl_.get(), stream_.cuda()));
    });
  }
  std::unique_ptr<PendingCollective> start_all_gather(const TensorView& out, const TensorView& x,
                                                      const Stream& stream) const override {
    if (is_host(x)) return host_->start_all_gather(out, x, stream);
    check_shares("all_gather", out, x, size());
    if (size() == 1) return copied(out, x, stream);
    traffic_["all_gather"] += (size() - 1) * x.bytes();
    return start(stream, [&] {
      NCCL_CHECK(ncclAllGather(x.data, out.data, x.num_elements(), nccl_type(x.dtype), nccl_.get(),
                               stream_.cuda()));
    });
  }
  void broadcast(const TensorView& x, int root, const Stream& stream) const override {
    if (is_host(x)) return host_->broadcast(x, root, stream);
    check_peer("broadcast", root, size());
    if (size() == 1) return;
    if (rank() == root) traffic_["broadcast"] += x.bytes();
    run(stream, [&] {
      NCCL_CHECK(ncclBroadcast(x.data, x.data, x.num_elements(), nccl_type(x.dtype), root,
                               nccl_.get(), stream_.cuda()));
    });
  }
  void send(const TensorView& x, int destination, const Stream& stream) const override {
    if (is_host(x)) return host_->send(x, destination, stream);
    check_peer("send", destination, size());
    MIRABELLE_CHECK(destination != rank(), "rank ", rank(), " sends to itself");
    traffic_["send"] += x.bytes();
    run(stream, [&] { send_now(x.data, x.num_elements(), x.dtype, destination); });
  }
  void recv(const TensorView& x, int source, const Stream& stream) const override {
    if (is_host(x)) return host_->recv(x, source, stream);
    check_peer("recv", source, size());
    MIRABELLE_CHECK(source != rank(), "rank ", rank(), " receives from itself");
    run(stream, [&] { recv_now(x.data, x.num_elements(), x.dtype, source); });
  }
  void barrier() const override { host_->barrier(); }
  void synchronize(const Stream& stream) const override {
    if (size() == 1) return stream.synchronize();
    const Activity activity("synchronize", group_name());
    const Event done = end_of(stream);
    while (!done.is_reached()) {
      check_background(nccl_.get());
      std::this_thread::yield();
    }
  }
  std::unique_ptr<Communicator> split(int color, int key,
                                      const std::string& group_name) const override {
    return std::make_unique<NcclCommunicator>(host_->split(color, key, group_name), tree_sum_);
  }
  std::map<std::string, int64_t> traffic() const override {
    std::map<std::string, int64_t> traffic = host_->traffic();
    for (const auto& [operation, bytes] : traffic_) traffic[operation] += bytes;
    return traffic;
  }

 private:
  /// Enqueues `collective`, after what is on `stream`.
  template <typename Collective>
  Event enqueue(const Stream& stream, Collective collective) const {
    check_background(nccl_.get());
    end_of(stream).hold(stream_);
    collective();
    return end_of(stream_);
  }
  template <typename Collective>
  std::unique_ptr<PendingCollective> start(const Stream& stream, Collective collective) const {
    return std::make_unique<NcclCollective>(nccl_.get(), enqueue(stream, collective));
  }
  /// The same, before what comes on `stream`.
  template <typename Collective>
  void run(const Stream& stream, Collective collective) const {
    enqueue(stream, collective).hold(stream);
  }

  static std::unique_ptr<PendingCollective> copied(const TensorView& out, const TensorView& x,
                                                   const Stream& stream) {
    if (out.data != x.data) copy(out, x.reshaped(out.shape), stream);
    return std::make_unique<DoneCollective>();
  }

  void send_now(const void* data, int64_t n, DType dtype, int peer) const {
    NCCL_CHECK(ncclSend(data, n, nccl_type(dtype), peer, nccl_.get(), stream_.cuda()));
  }
  void recv_now(void* data, int64_t n, DType dtype, int peer) const {
    NCCL_CHECK(ncclRecv(data, n, nccl_type(dtype), peer, nccl_.get(), stream_.cuda()));
  }

  /// Whether NCCL, which adds in an order of its own choice, must not add.
  bool is_tree_sum(const TensorView& x, ReduceOp op) const {
    const bool has_kernel = x.dtype == DType::kFloat32 || x.dtype == DType::kBFloat16;
    return tree_sum_ && op == ReduceOp::kSum && has_kernel;
  }

  /// Elements [begin, begin + n) of a rank's piece, of pieces of `piece` elements of which the last
  /// ones may be shorter or empty.
  struct Part {
    char* data;
    int64_t n;
  };
  static Part part_of(const TensorView& x, int64_t piece, int owner, int64_t begin, int64_t n) {
    const int64_t total = x.num_elements();
    const int64_t first = std::min(owner * piece + begin, total);
    const int64_t end = std::min({first + n, (owner + 1) * piece, total});
    return {static_cast<char*>(x.data) + first * size_in_bytes(x.dtype),
            std::max<int64_t>(end - first, 0)};
  }

  /// out = the sum over ranks of this rank's piece of x; chunk by chunk, to bound the workspace.
  void reduce_scatter_in_tree(void* out, const TensorView& x, int64_t piece) const {
    const int64_t element_bytes = size_in_bytes(x.dtype);
    const int64_t stride =
        std::min(piece, std::max<int64_t>(kMaxWorkspaceBytes / size() / element_bytes, 1));
    char* const operands = workspace(size() * stride * element_bytes);
    for (int64_t begin = 0; begin < piece; begin += stride) {
      const Part own = part_of(x, piece, rank(), begin, stride);
      NCCL_CHECK(ncclGroupStart());
      for (int step = 1; step < size(); ++step) {
        const int peer = (rank() + step) % size();
        const Part theirs = part_of(x, piece, peer, begin, stride);
        if (theirs.n > 0) send_now(theirs.data, theirs.n, x.dtype, peer);
        if (own.n > 0) recv_now(operands + peer * own.n * element_bytes, own.n, x.dtype, peer);
      }
      NCCL_CHECK(ncclGroupEnd());
      if (own.n == 0) continue;
      const auto view = [&](void* data, const Shape& shape) {
        return TensorView{data, shape, x.dtype, Device::kCuda};
      };
      const TensorView rows = view(operands, {size(), own.n});
      copy(rows.slice(rank()), view(own.data, {own.n}), stream_);
      tree_sum_(view(static_cast<char*>(out) + begin * element_bytes, {own.n}), rows, stream_);
    }
  }

  void all_reduce_in_tree(const TensorView& x) const {
    const int64_t piece = (x.num_elements() + size() - 1) / size();
    const Part own = part_of(x, piece, rank(), 0, piece);
    reduce_scatter_in_tree(own.data, x, piece);
    NCCL_CHECK(ncclGroupStart());
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + step) % size();
      const Part theirs = part_of(x, piece, peer, 0, piece);
      if (own.n > 0) send_now(own.data, own.n, x.dtype, peer);
      if (theirs.n > 0) recv_now(theirs.data, theirs.n, x.dtype, peer);
    }
    NCCL_CHECK(ncclGroupEnd());
  }

  /// Grows to a power of two. The smaller ones stay: recorded work (CudaGraph) may use them.
  char* workspace(int64_t bytes) const {
    if (workspaces_.empty() || workspaces_.back().bytes() < bytes) {
      const auto size = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(bytes)));
      workspaces_.emplace_back(size, Device::kCuda);
    }
    return static_cast<char*>(workspaces_.back().data());
  }

  std::unique_ptr<Communicator> host_;
  TreeSum tree_sum_;  // empty: sums are NCCL's
  Stream stream_;
  mutable std::vector<Buffer> workspaces_;
  mutable std::map<std::string, int64_t> traffic_;
  CommHandle nccl_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     TreeSum tree_sum) {
  return std::make_unique<NcclCommunicator>(std::move(host), std::move(tree_sum));
}

std::string nccl_version() {
  int version = 0;
  NCCL_CHECK(ncclGetVersion(&version));  // 22707 is 2.27.7
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace mirabelle
