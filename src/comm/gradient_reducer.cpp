#include "mirabelle/comm/gradient_reducer.h"

#include <algorithm>

#include "mirabelle/core/profile_range.h"

namespace mirabelle {
namespace {

char* begin_of(const TensorView& x) { return static_cast<char*>(x.data); }
char* end_of(const TensorView& x) { return begin_of(x) + x.bytes(); }

}  // namespace

GradientReducer::GradientReducer(const Communicator& group, int64_t bucket_bytes)
    : group_(group), bucket_bytes_(bucket_bytes) {
  MIRABELLE_CHECK(bucket_bytes > 0, "a gradient bucket has at least one byte, not ", bucket_bytes);
}

void GradientReducer::add(const TensorView& range, const Stream& stream) {
  for (const auto& collective : under_way_) collective->poll();
  if (range.empty()) return;
  const bool same_kind = range.dtype == pending_.dtype && range.device == pending_.device;
  const bool touches =
      pending_ && (end_of(range) == begin_of(pending_) || end_of(pending_) == begin_of(range));
  if (same_kind && touches) {
    pending_.data = std::min(begin_of(range), begin_of(pending_));
    pending_.shape = {pending_.num_elements() + range.num_elements()};
  } else {
    if (pending_) start_pending(stream);
    pending_ = range.reshaped({range.num_elements()});
  }
  if (pending_.bytes() >= bucket_bytes_) start_pending(stream);
}

void GradientReducer::finish(const Stream& stream) {
  if (pending_) start_pending(stream);
  for (const auto& collective : under_way_) collective->wait(stream);
  under_way_.clear();
}

void GradientReducer::start_pending(const Stream& stream) {
  const ProfileRange range("start all-reduce");
  under_way_.push_back(group_.start_all_reduce(pending_, ReduceOp::kSum, stream));
  pending_ = TensorView();
}

}  // namespace mirabelle
