#include "mirabelle/training/weight_gatherer.h"

namespace mirabelle {

void WeightGatherer::start(const Stream& stream) {
  const int64_t num_regions = partition_.num_regions();
  const auto start_region = [&](int64_t region) {
    for (const Bucket& bucket : partition_.buckets_of(region)) {
      const auto part = [&](const FlatRange& range) {
        return weights_.rows(range.begin, range.end);
      };
      under_way_.push_back(
          {region, group_.start_all_gather(part(bucket.range), part(bucket.owned), stream)});
    }
  };
  start_region(num_regions - 1);  // the norms, which the first block needs
  for (int64_t region = 0; region + 1 < num_regions; ++region) start_region(region);
}

void WeightGatherer::wait_for(int64_t region, const Stream& stream) {
  std::erase_if(under_way_, [&](const UnderWay& gather) {
    gather.collective->poll();
    if (gather.region != region) return false;
    gather.collective->wait(stream);
    return true;
  });
}

void WeightGatherer::finish(const Stream& stream) {
  for (const UnderWay& gather : under_way_) gather.collective->wait(stream);
  under_way_.clear();
}

}  // namespace mirabelle
