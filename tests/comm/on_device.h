#pragma once

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/copy.h"

namespace mirabelle::testing {

/// Takes operands in host memory, as the conformance tests have them, and runs each collective on
/// copies in GPU memory, so that the same tests judge the communicators that can reach it.
class OnDevice : public Communicator {
 public:
  explicit OnDevice(std::unique_ptr<Communicator> inner)
      : Communicator(inner->group_name()), inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string name() const override { return inner_->name(); }
  void barrier() const override { inner_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key,
                                      const std::string& group_name) const override {
    return std::make_unique<OnDevice>(inner_->split(color, key, group_name));
  }
  std::map<std::string, int64_t> traffic() const override { return inner_->traffic(); }

  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                      const Stream&) const override {
    auto whole = std::make_unique<Mirror>(x, stream_);
    auto pending = inner_->start_all_reduce(whole->of(x), op, stream_);
    return fetching(x, nullptr, std::move(whole), nullptr, std::move(pending));
  }
  std::unique_ptr<PendingCollective> start_all_gather(const TensorView& out, const TensorView& x,
                                                      const Stream&) const override {
    auto whole = std::make_unique<Mirror>(out, stream_);
    auto apart = whole->holds(x) ? nullptr : std::make_unique<Mirror>(x, stream_);
    auto pending =
        inner_->start_all_gather(whole->of(out), (apart ? apart : whole)->of(x), stream_);
    return fetching(out, &x, std::move(whole), std::move(apart), std::move(pending));
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(const TensorView& out,
                                                          const TensorView& x, ReduceOp op,
                                                          const Stream&) const override {
    auto whole = std::make_unique<Mirror>(x, stream_);
    auto apart = whole->holds(out) ? nullptr : std::make_unique<Mirror>(out, stream_);
    auto pending =
        inner_->start_reduce_scatter((apart ? apart : whole)->of(out), whole->of(x), op, stream_);
    return fetching(x, &out, std::move(whole), std::move(apart), std::move(pending));
  }
  void broadcast(const TensorView& x, int root, const Stream&) const override {
    const Mirror on_gpu(x, stream_);
    inner_->broadcast(on_gpu.of(x), root, stream_);
    on_gpu.fetch(x, stream_);
  }
  void send(const TensorView& x, int destination, const Stream&) const override {
    const Mirror on_gpu(x, stream_);
    inner_->send(on_gpu.of(x), destination, stream_);
    stream_.synchronize();
  }
  void recv(const TensorView& x, int source, const Stream&) const override {
    const Mirror on_gpu(x, stream_);
    inner_->recv(on_gpu.of(x), source, stream_);
    on_gpu.fetch(x, stream_);
  }

 private:
  /// A copy of a host tensor on the GPU, and of views into it.
  class Mirror {
   public:
    Mirror(const TensorView& x, const Stream& stream)
        : host_(x), memory_(x.bytes(), Device::kCuda) {
      if (!x.empty()) copy(of(x), x, stream);
    }
    bool holds(const TensorView& x) const {
      const char *begin = static_cast<char*>(host_.data), *data = static_cast<char*>(x.data);
      return begin && data >= begin && data + x.bytes() <= begin + host_.bytes();
    }
    TensorView of(const TensorView& x) const {
      const int64_t offset = static_cast<char*>(x.data) - static_cast<char*>(host_.data);
      return {static_cast<char*>(memory_.data()) + offset, x.shape, x.dtype, Device::kCuda};
    }
    void fetch(const TensorView& x, const Stream& stream) const {
      copy(x, of(x), stream);
      stream.synchronize();
    }

   private:
    TensorView host_;
    Buffer memory_;
  };

  /// Brings everything back, operands too, so that a test sees whether they were overwritten.
  class Fetching : public PendingCollective {
   public:
    Fetching(const TensorView& whole, const TensorView& part, std::unique_ptr<Mirror> on_gpu,
             std::unique_ptr<Mirror> apart, std::unique_ptr<PendingCollective> pending,
             const Stream& stream)
        : whole_(whole),
          part_(part),
          on_gpu_(std::move(on_gpu)),
          apart_(std::move(apart)),
          pending_(std::move(pending)),
          stream_(stream) {}
    void poll() override { pending_->poll(); }
    void wait(const Stream&) override {
      pending_->wait(stream_);
      on_gpu_->fetch(whole_, stream_);
      if (apart_) apart_->fetch(part_, stream_);
    }

   private:
    TensorView whole_, part_;
    std::unique_ptr<Mirror> on_gpu_, apart_;
    std::unique_ptr<PendingCollective> pending_;
    const Stream& stream_;
  };
  std::unique_ptr<PendingCollective> fetching(const TensorView& whole, const TensorView* part,
                                              std::unique_ptr<Mirror> on_gpu,
                                              std::unique_ptr<Mirror> apart,
                                              std::unique_ptr<PendingCollective> pending) const {
    return std::make_unique<Fetching>(whole, part ? *part : TensorView(), std::move(on_gpu),
                                      std::move(apart), std::move(pending), stream_);
  }

  std::unique_ptr<Communicator> inner_;
  Stream stream_{Device::kCuda};
};

}  // namespace mirabelle::testing
