#include "check_collective.h"
#include "done_collective.h"
#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/copy.h"

namespace mirabelle {
namespace {

/// A tensor's place on the host while a collective is at work on it: the tensor itself, or a copy.
class Staged {
 public:
  Staged() = default;
  explicit Staged(const TensorView& x)
      : device_(x), memory_(is_host(x) ? Buffer() : Buffer(x.shape, x.dtype)) {}

  const TensorView& host() const { return is_host(device_) ? device_ : memory_.view(); }

  void fetch(const Stream& stream) const {
    if (is_host(device_)) return;
    copy(host(), device_, stream);
    stream.synchronize();
  }
  void put_back(const Stream& stream) const {
    if (is_host(device_)) return;
    copy(device_, host(), stream);
    stream.synchronize();  // the memory may go
  }

 private:
  static bool is_host(const TensorView& x) { return x.device == Device::kCpu; }
  TensorView device_;
  Buffer memory_;
};

/// `result` goes back to its place when the collective is done.
class StagedCollective : public PendingCollective {
 public:
  StagedCollective(Staged result, Staged operand, std::unique_ptr<PendingCollective> pending)
      : result_(std::move(result)), operand_(std::move(operand)), pending_(std::move(pending)) {}
  void poll() override { pending_->poll(); }
  void wait(const Stream& stream) override {
    pending_->wait(stream);
    if (!done_) result_.put_back(stream);
    done_ = true;
  }

 private:
  Staged result_, operand_;
  std::unique_ptr<PendingCollective> pending_;
  bool done_ = false;
};

class StagedCommunicator : public Communicator {
 public:
  explicit StagedCommunicator(std::unique_ptr<Communicator> host)
      : Communicator(host->group_name()), host_(std::move(host)) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string name() const override { return host_->name() + ", staged"; }
  std::map<std::string, int64_t> traffic() const override { return host_->traffic(); }

  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                      const Stream& stream) const override {
    if (size() == 1) return std::make_unique<DoneCollective>();
    Staged staged(x);
    staged.fetch(stream);
    auto pending = host_->start_all_reduce(staged.host(), op, stream);
    return std::make_unique<StagedCollective>(std::move(staged), Staged(), std::move(pending));
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(const TensorView& out,
                                                          const TensorView& x, ReduceOp op,
                                                          const Stream& stream) const override {
    check_shares("reduce_scatter", x, out, size());
    if (size() == 1) return copied(out, x, stream);
    Staged staged_out(out), staged_x(x);
    staged_x.fetch(stream);
    auto pending = host_->start_reduce_scatter(staged_out.host(), staged_x.host(), op, stream);
    return std::make_unique<StagedCollective>(std::move(staged_out), std::move(staged_x),
                                              std::move(pending));
  }
  std::unique_ptr<PendingCollective> start_all_gather(const TensorView& out, const TensorView& x,
                                                      const Stream& stream) const override {
    check_shares("all_gather", out, x, size());
    if (size() == 1) return copied(out, x, stream);
    Staged staged_out(out), staged_x(x);
    staged_x.fetch(stream);
    auto pending = host_->start_all_gather(staged_out.host(), staged_x.host(), stream);
    return std::make_unique<StagedCollective>(std::move(staged_out), std::move(staged_x),
                                              std::move(pending));
  }
  void broadcast(const TensorView& x, int root, const Stream& stream) const override {
    const Staged staged(x);
    if (rank() == root) staged.fetch(stream);
    host_->broadcast(staged.host(), root, stream);
    if (rank() != root) staged.put_back(stream);
  }
  void send(const TensorView& x, int destination, const Stream& stream) const override {
    const Staged staged(x);
    staged.fetch(stream);
    host_->send(staged.host(), destination, stream);
  }
  void recv(const TensorView& x, int source, const Stream& stream) const override {
    const Staged staged(x);
    host_->recv(staged.host(), source, stream);
    staged.put_back(stream);
  }
  void barrier() const override { host_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key,
                                      const std::string& group_name) const override {
    return std::make_unique<StagedCommunicator>(host_->split(color, key, group_name));
  }

 private:
  static std::unique_ptr<PendingCollective> copied(const TensorView& out, const TensorView& x,
                                                   const Stream& stream) {
    if (out.data != x.data) copy(out, x.reshaped(out.shape), stream);
    return std::make_unique<DoneCollective>();
  }

  std::unique_ptr<Communicator> host_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host) {
  return std::make_unique<StagedCommunicator>(std::move(host));
}

}  // namespace mirabelle
