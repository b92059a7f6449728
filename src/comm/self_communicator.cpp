#include "check_collective.h"
#include "done_collective.h"
#include "mirabelle/comm/communicator.h"

namespace mirabelle {
namespace {

class SelfCommunicator : public Communicator {
 public:
  explicit SelfCommunicator(const std::string& group_name) : Communicator(group_name) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string name() const override { return "self"; }

  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp,
                                                      const Stream&) const override {
    check_host("all_reduce", x);
    return std::make_unique<DoneCollective>();
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(const TensorView& out,
                                                          const TensorView& x, ReduceOp,
                                                          const Stream&) const override {
    check_parts("reduce_scatter", x, out, 1);
    copy_on_host(out, x);
    return std::make_unique<DoneCollective>();
  }
  std::unique_ptr<PendingCollective> start_all_gather(const TensorView& out, const TensorView& x,
                                                      const Stream&) const override {
    check_parts("all_gather", out, x, 1);
    copy_on_host(out, x);
    return std::make_unique<DoneCollective>();
  }
  void broadcast(const TensorView& x, int root, const Stream&) const override {
    check_host("broadcast", x);
    check_peer("broadcast", root, 1);
  }
  void send(const TensorView&, int destination, const Stream&) const override {
    throw_error(ErrorKind::kOther, "send to rank ", destination, " in a group of one");
  }
  void recv(const TensorView&, int source, const Stream&) const override {
    throw_error(ErrorKind::kOther, "recv from rank ", source, " in a group of one");
  }
  void barrier() const override {}
  std::unique_ptr<Communicator> split(int color, int,
                                      const std::string& group_name) const override {
    MIRABELLE_CHECK(color >= 0, "split wants a colour of at least 0, not ", color);
    return std::make_unique<SelfCommunicator>(group_name);
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<SelfCommunicator>("world");
}

}  // namespace mirabelle
