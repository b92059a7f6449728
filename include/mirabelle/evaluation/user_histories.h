#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/data/corpus.h"

namespace mirabelle {

/// All users of the corpus, or `max_users` of them drawn by (seed, user), ascending.
std::vector<int64_t> select_users(const Corpus& corpus, int64_t max_users, int64_t seed);

/// The users with these IDs of the data set, in the order of `ids`. An ID is compared as text: "17"
/// is the integer 17. Throws a kData Error that names an ID that no user has.
std::vector<int64_t> find_users(const Corpus& corpus, std::span<const std::string> ids);

/// The histories of these users (ascending global indices), in their order; `first_user` of the
/// result means nothing. Reads only the neighbourhood of those users.
HistoryBlock read_user_histories(const Corpus& corpus, std::span<const int64_t> users);

/// Their IDs.
std::vector<nlohmann::json> read_user_ids(const Corpus& corpus, std::span<const int64_t> users);

/// Distinct items, ascending.
std::vector<int32_t> distinct_items(std::span<const int32_t> items);

/// Which of `num_users` users rank `rank` works on, block by block: the ranks take blocks of
/// `block_users` neighbouring users in turn, so that all have about the same work. Calls
/// body(begin, end) for each.
void for_each_block_of_rank(int64_t num_users, int64_t block_users, int rank, int num_ranks,
                            const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace mirabelle
