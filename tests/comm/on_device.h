#pragma once

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/copy.h"

namespace mirabelle::testing {

/// Takes operands in host memory, as the conformance tests have them, and runs each collective on
/// copies in GPU memory, so that the same tests judge the communicators that can reach it.
class OnDevice : public Communicator {
 public:
  explicit OnDevice(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string name() const override { return inner_->name(); }
  void barrier() const override { inner_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) const override {
    return std::make_unique<OnDevice>(inner_->split(color, key));
  }

  void all_reduce(const TensorView& x, ReduceOp op, const Stream&) const override {
    const Mirror on_gpu(x, stream_);
    inner_->all_reduce(on_gpu.of(x), op, stream_);
    on_gpu.fetch(x, stream_);
  }
  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                      const Stream&) const override {
    auto on_gpu = std::make_unique<Mirror>(x, stream_);
    auto pending = inner_->start_all_reduce(on_gpu->of(x), op, stream_);
    return std::make_unique<Fetching>(x, std::move(on_gpu), std::move(pending), stream_);
  }
  void all_gather(const TensorView& out, const TensorView& x, const Stream&) const override {
    const Mirror whole(out, stream_);
    const Mirror apart = whole.holds(x) ? Mirror(kNothing, stream_) : Mirror(x, stream_);
    inner_->all_gather(whole.of(out), whole.holds(x) ? whole.of(x) : apart.of(x), stream_);
    whole.fetch(out, stream_);
    if (!whole.holds(x)) apart.fetch(x, stream_);
  }
  void reduce_scatter(const TensorView& out, const TensorView& x, ReduceOp op,
                      const Stream&) const override {
    const Mirror whole(x, stream_);
    const Mirror apart = whole.holds(out) ? Mirror(kNothing, stream_) : Mirror(out, stream_);
    const TensorView result = whole.holds(out) ? whole.of(out) : apart.of(out);
    inner_->reduce_scatter(result, whole.of(x), op, stream_);
    whole.fetch(x, stream_);
    copy(out, result, stream_);
    stream_.synchronize();
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
  static inline const TensorView kNothing = {nullptr, {0}, DType::kUint8, Device::kCpu};

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

  class Fetching : public PendingCollective {
   public:
    Fetching(const TensorView& x, std::unique_ptr<Mirror> on_gpu,
             std::unique_ptr<PendingCollective> pending, const Stream& stream)
        : x_(x), on_gpu_(std::move(on_gpu)), pending_(std::move(pending)), stream_(stream) {}
    void poll() override { pending_->poll(); }
    void wait(const Stream&) override {
      pending_->wait(stream_);
      on_gpu_->fetch(x_, stream_);
    }

   private:
    TensorView x_;
    std::unique_ptr<Mirror> on_gpu_;
    std::unique_ptr<PendingCollective> pending_;
    const Stream& stream_;
  };

  std::unique_ptr<Communicator> inner_;
  Stream stream_{Device::kCuda};
};

}  // namespace mirabelle::testing
