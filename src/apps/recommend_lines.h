#pragma once

#include <cstdint>
#include <istream>
#include <string>

#include "mirabelle/config/config.h"
#include "trained_model.h"

namespace mirabelle {

struct LineStreams {
  std::istream& in;    ///< read by rank 0
  std::string output;  ///< a file, or empty: standard output
  int64_t count = 10;  ///< items for each user
};

/// For each line {"user": anything, "items": [ID, ...]} of `in` writes a line {"user", "items",
/// "scores"}, in the same order; blank lines are left out. Works on a few hundred lines at a time,
/// so that an input may have no end. The output file stands under another name, FILE.partial, until
/// the input ends; if that is there already, as many lines of the input as it has answers for are
/// skipped. Returns the number of users. Throws a kData Error with the number of a line that makes
/// no sense. Collective.
int64_t recommend_lines(TrainedModel& model, const Config& config, const LineStreams& streams);

}  // namespace mirabelle
