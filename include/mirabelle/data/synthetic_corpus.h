#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "mirabelle/data/corpus.h"
#include "mirabelle/data/synthetic_world.h"

namespace mirabelle {

/// Means over users. An item's rank is the number of better ones; equal scores share their mean
/// rank. Items of the history do not compete (they have probability 0 under the law).
struct RankingFigures {
  double recall_5 = 0, recall_10 = 0, ndcg_5 = 0, ndcg_10 = 0;
};

/// What can be reached on one split of a synthetic world.
struct WorldFigures {
  RankingFigures ceiling;     ///< the exact filter over the law: nobody can do better on average
  RankingFigures markov;      ///< counts of the last item's successors in the training parts,
                              ///< backed off to popularity
  RankingFigures popularity;  ///< counts in the training parts
};

struct SyntheticWorldReport {
  WorldFigures validation, test;
  const WorldFigures& of(Split split) const { return split == Split::kTest ? test : validation; }
};

/// Draws the world into a corpus folder: leave-one-out split, timestamps, titles, two feature
/// sources; user u's ID is u + 1 and item i's is i + 1. The manifest's entry "law" holds
///   parameters  every field of the configuration
///   validation, test  {"ceiling", "markov", "popularity"}, each with recall@5, recall@10, ndcg@5
///                     and ndcg@10
/// Threads share the users; the corpus and the figures do not depend on how many there are. Memory
/// does not grow with the users, up to the Markov counts, of which there are at most num_items^2.
/// `progress` is told the part of the work that is done.
SyntheticWorldReport write_synthetic_corpus(const std::filesystem::path& folder,
                                            const SyntheticWorldConfig& config,
                                            const std::function<void(double)>& progress = {});

/// The report as a table for people, a row per split and recommender.
std::string to_table(const SyntheticWorldReport& report);

}  // namespace mirabelle
