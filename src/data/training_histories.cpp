#include "mirabelle/data/training_histories.h"

#include <algorithm>

namespace mirabelle {
namespace {

constexpr int64_t kUsersPerRead = 65536;

}  // namespace

void for_each_training_history(const Corpus& corpus,
                               const std::function<void(std::span<const int32_t> items)>& body,
                               int rank, int num_ranks) {
  int64_t block = 0;
  for (int64_t shard = 0; shard < corpus.num_shards(); ++shard) {
    const int64_t num_users = corpus.shard_users(shard);
    for (int64_t begin = 0; begin < num_users; begin += kUsersPerRead) {
      if (block++ % num_ranks != rank) continue;
      const HistoryBlock histories =
          corpus.read_histories(shard, begin, std::min(begin + kUsersPerRead, num_users));
      for (int64_t user = 0; user < histories.num_users(); ++user) {
        body(histories.training_part(user));
      }
    }
  }
}

std::vector<int64_t> count_training_events(const Corpus& corpus) {
  std::vector<int64_t> counts(corpus.num_items());
  for_each_training_history(corpus, [&](std::span<const int32_t> items) {
    for (const int32_t item : items) ++counts[item];
  });
  return counts;
}

}  // namespace mirabelle
