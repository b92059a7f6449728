#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "mirabelle/core/random.h"
#include "mirabelle/data/corpus_writer.h"

namespace mirabelle {

/// Writes a small valid corpus and returns its folder: leave-one-out split, shards of 50 users,
/// timestamps, histories of 3 to 20 events over Zipf-like popular items, and two feature sources,
/// "title" (8 columns) and "metadata" (5 columns). User u's ID is u + 1, item i's ID is i + 1, its
/// title "Item <i + 1>". A pure function of its arguments.
inline std::filesystem::path write_tiny_corpus(const std::filesystem::path& folder,
                                               int64_t num_users, int64_t num_items, int64_t seed) {
  CorpusOptions options;
  options.dataset = "tiny";
  options.users_per_shard = 50;
  CorpusWriter writer(folder, options, true, {"rating"});
  for (int64_t item = 0; item < num_items; ++item) {
    const std::string id = std::to_string(item + 1);
    writer.add_item(id, "Item " + id, "{\"item\": " + id + ", \"title\": \"Item " + id + "\"}");
  }
  for (const auto& [name, dim] :
       std::vector<std::pair<std::string, int64_t>>{{"title", 8}, {"metadata", 5}}) {
    Random random(random_key(static_cast<uint64_t>(seed), name));
    std::vector<float> rows(num_items * dim);
    for (float& value : rows) value = static_cast<float>(random.normal());
    writer.add_feature(name, dim);
    writer.add_feature_rows(name, rows.data(), num_items);
  }
  Random random(random_key(static_cast<uint64_t>(seed), "histories"));
  for (int64_t user = 0; user < num_users; ++user) {
    UserHistory history;
    history.id = std::to_string(user + 1);
    history.columns.resize(1);
    const int64_t length = 3 + random.below(18);
    for (int64_t event = 0; event < length; ++event) {
      const double u = random.uniform();  // squared: low item numbers are more popular
      history.items.push_back(static_cast<int32_t>(u * u * static_cast<double>(num_items)));
      history.timestamps.push_back(1'600'000'000 + 86'400 * event);
      history.columns[0].push_back(static_cast<float>(1 + random.below(5)));
    }
    writer.add_user(history);
  }
  writer.finish();
  return folder;
}

}  // namespace mirabelle
