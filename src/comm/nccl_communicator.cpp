#include <nccl.h>

#include <exception>
#include <thread>

#include "check_collective.h"
#include "mirabelle/comm/communicator.h"
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

/// GPU memory goes through NCCL, on a stream of its own that starts when the caller's has come so
/// far; host memory through the host's communicator.
class NcclCommunicator : public Communicator {
 public:
  explicit NcclCommunicator(std::unique_ptr<Communicator> host)
      : host_(std::move(host)), stream_(Device::kCuda) {
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

  void all_reduce(const TensorView& x, ReduceOp op, const Stream& stream) const override {
    if (is_host(x)) return host_->all_reduce(x, op, stream);
    start_all_reduce(x, op, stream)->wait(stream);
  }
  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                      const Stream& stream) const override {
    if (is_host(x)) return host_->start_all_reduce(x, op, stream);
    check_reducible("all_reduce", x);
    end_of(stream).hold(stream_);
    NCCL_CHECK(ncclAllReduce(x.data, x.data, x.num_elements(), nccl_type(x.dtype), nccl_op(op),
                             nccl_.get(), stream_.cuda()));
    return std::make_unique<NcclCollective>(nccl_.get(), end_of(stream_));
  }
  void all_gather(const TensorView& out, const TensorView& x, const Stream& stream) const override {
    if (is_host(x)) return host_->all_gather(out, x, stream);
    check_shares("all_gather", out, x, size());
    run(stream, [&] {
      return ncclAllGather(x.data, out.data, x.num_elements(), nccl_type(x.dtype), nccl_.get(),
                           stream_.cuda());
    });
  }
  void reduce_scatter(const TensorView& out, const TensorView& x, ReduceOp op,
                      const Stream& stream) const override {
    if (is_host(x)) return host_->reduce_scatter(out, x, op, stream);
    check_shares("reduce_scatter", x, out, size());
    check_reducible("reduce_scatter", x);
    run(stream, [&] {
      return ncclReduceScatter(x.data, out.data, out.num_elements(), nccl_type(x.dtype),
                               nccl_op(op), nccl_.get(), stream_.cuda());
    });
  }
  void broadcast(const TensorView& x, int root, const Stream& stream) const override {
    if (is_host(x)) return host_->broadcast(x, root, stream);
    check_peer("broadcast", root, size());
    run(stream, [&] {
      return ncclBroadcast(x.data, x.data, x.num_elements(), nccl_type(x.dtype), root, nccl_.get(),
                           stream_.cuda());
    });
  }
  void send(const TensorView& x, int destination, const Stream& stream) const override {
    if (is_host(x)) return host_->send(x, destination, stream);
    check_peer("send", destination, size());
    MIRABELLE_CHECK(destination != rank(), "rank ", rank(), " sends to itself");
    run(stream, [&] {
      return ncclSend(x.data, x.num_elements(), nccl_type(x.dtype), destination, nccl_.get(),
                      stream_.cuda());
    });
  }
  void recv(const TensorView& x, int source, const Stream& stream) const override {
    if (is_host(x)) return host_->recv(x, source, stream);
    check_peer("recv", source, size());
    MIRABELLE_CHECK(source != rank(), "rank ", rank(), " receives from itself");
    run(stream, [&] {
      return ncclRecv(x.data, x.num_elements(), nccl_type(x.dtype), source, nccl_.get(),
                      stream_.cuda());
    });
  }
  void barrier() const override { host_->barrier(); }
  void synchronize(const Stream& stream) const override {
    const Event done = end_of(stream);
    while (!done.is_reached()) {
      check_background(nccl_.get());
      std::this_thread::yield();
    }
  }
  std::unique_ptr<Communicator> split(int color, int key) const override {
    return std::make_unique<NcclCommunicator>(host_->split(color, key));
  }

 private:
  /// Enqueues `collective` between what is on `stream` and what comes.
  template <typename Collective>
  void run(const Stream& stream, Collective collective) const {
    check_background(nccl_.get());
    end_of(stream).hold(stream_);
    NCCL_CHECK(collective());
    end_of(stream_).hold(stream);
  }

  std::unique_ptr<Communicator> host_;
  Stream stream_;
  CommHandle nccl_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host) {
  return std::make_unique<NcclCommunicator>(std::move(host));
}

}  // namespace mirabelle
