#include "mirabelle/evaluation/user_histories.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <unordered_map>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

constexpr int64_t kMaxGap =
    4096;  // users that are read in vain rather than opening the shard again
constexpr int64_t kUsersPerRead = 65536;

/// Calls body(shard, begin, end, range of `users`) for runs of users that lie close together in one
/// shard; begin and end count within the shard.
template <typename Body>
void for_each_run(const Corpus& corpus, std::span<const int64_t> users, const Body& body) {
  MIRABELLE_CHECK(std::is_sorted(users.begin(), users.end()), "users must be ascending");
  int64_t shard = 0;
  for (size_t i = 0; i < users.size();) {
    MIRABELLE_CHECK(users[i] >= 0 && users[i] < corpus.num_users(), "user ", users[i], " of ",
                    corpus.num_users());
    while (users[i] >= corpus.shard_first_user(shard) + corpus.shard_users(shard)) ++shard;
    const int64_t first = corpus.shard_first_user(shard);
    const int64_t end = first + corpus.shard_users(shard);
    const size_t run_begin = i++;
    while (i < users.size() && users[i] < end && users[i] - users[i - 1] <= kMaxGap) ++i;
    body(shard, users[run_begin] - first, users[i - 1] + 1 - first,
         users.subspan(run_begin, i - run_begin));
  }
}

}  // namespace

std::vector<int64_t> select_users(const Corpus& corpus, int64_t max_users, int64_t seed) {
  const int64_t num_users = corpus.num_users();
  std::vector<int64_t> users;
  if (max_users == 0 || max_users >= num_users) {
    users.resize(num_users);
    std::iota(users.begin(), users.end(), 0);
    return users;
  }
  // The users with the smallest random numbers; the largest of them is on top.
  const uint64_t key = random_key(static_cast<uint64_t>(seed), "sample of users");
  std::priority_queue<std::pair<uint64_t, int64_t>> chosen;
  for (int64_t user = 0; user < num_users; ++user) {
    const PhiloxCounter bits = philox(
        key, {static_cast<uint32_t>(user), static_cast<uint32_t>(user >> 32), uint32_t{0}, 0});
    chosen.emplace(uint64_t{bits[0]} << 32 | bits[1], user);
    if (static_cast<int64_t>(chosen.size()) > max_users) chosen.pop();
  }
  for (; !chosen.empty(); chosen.pop()) users.push_back(chosen.top().second);
  std::sort(users.begin(), users.end());
  return users;
}

std::vector<int64_t> find_users(const Corpus& corpus, std::span<const std::string> ids) {
  std::unordered_map<std::string, int64_t> wanted;
  for (const std::string& id : ids) wanted.emplace(id, -1);
  size_t num_found = 0;
  for (int64_t shard = 0; shard < corpus.num_shards() && num_found < wanted.size(); ++shard) {
    for (int64_t begin = 0; begin < corpus.shard_users(shard); begin += kUsersPerRead) {
      const int64_t end = std::min(begin + kUsersPerRead, corpus.shard_users(shard));
      const std::vector<nlohmann::json> here = corpus.read_user_ids(shard, begin, end);
      for (size_t i = 0; i < here.size(); ++i) {
        const auto place = wanted.find(id_text(here[i]));
        if (place == wanted.end() || place->second >= 0) continue;
        place->second = corpus.shard_first_user(shard) + begin + static_cast<int64_t>(i);
        ++num_found;
      }
    }
  }
  std::vector<int64_t> users;
  for (const std::string& id : ids) {
    MIRABELLE_CHECK_DATA(wanted[id] >= 0, corpus.folder().string(), " has no user with the ID '",
                         id, "'");
    users.push_back(wanted[id]);
  }
  return users;
}

HistoryBlock read_user_histories(const Corpus& corpus, std::span<const int64_t> users) {
  HistoryBlock out;
  out.offsets.push_back(0);
  for_each_run(corpus, users, [&](int64_t shard, int64_t begin, int64_t end, auto run) {
    const HistoryBlock block = corpus.read_histories(shard, begin, end);
    for (int64_t user : run) {
      const int64_t local = user - corpus.shard_first_user(shard) - begin;
      const auto history = block.history(local);
      out.items.insert(out.items.end(), history.begin(), history.end());
      out.offsets.push_back(static_cast<int64_t>(out.items.size()));
      out.train_length.push_back(block.train_length[local]);
      out.valid_length.push_back(block.valid_length[local]);
    }
  });
  return out;
}

std::vector<nlohmann::json> read_user_ids(const Corpus& corpus, std::span<const int64_t> users) {
  std::vector<nlohmann::json> ids;
  for_each_run(corpus, users, [&](int64_t shard, int64_t begin, int64_t end, auto run) {
    const std::vector<nlohmann::json> all = corpus.read_user_ids(shard, begin, end);
    for (int64_t user : run) ids.push_back(all[user - corpus.shard_first_user(shard) - begin]);
  });
  return ids;
}

std::vector<int32_t> distinct_items(std::span<const int32_t> items) {
  std::vector<int32_t> distinct(items.begin(), items.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  return distinct;
}

void for_each_block_of_rank(int64_t num_users, int64_t block_users, int rank, int num_ranks,
                            const std::function<void(int64_t begin, int64_t end)>& body) {
  for (int64_t begin = rank * block_users; begin < num_users; begin += num_ranks * block_users) {
    body(begin, std::min(begin + block_users, num_users));
  }
}

}  // namespace mirabelle
