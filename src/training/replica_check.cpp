#include "mirabelle/training/replica_check.h"

#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <tuple>
#include <vector>

#include "mirabelle/core/copy.h"
#include "mirabelle/kernels/bit_hash.h"

namespace mirabelle {
namespace {

/// The pieces of a rank's share in the order of their offsets. What pads the last of them, which
/// may be a copy of one that nothing pads, is a piece of its own.
std::vector<LogicalPiece> sorted_pieces(const ParameterLayout& layout) {
  std::vector<LogicalPiece> pieces = layout.pieces();
  int64_t used = 0;
  for (const LogicalPiece& piece : pieces) {
    used = std::max(used, piece.offset + piece.num_elements());
  }
  if (used < layout.num_elements()) pieces.push_back({"the padding", {0}, 0, 0, 0, 0, used});
  std::sort(pieces.begin(), pieces.end(),
            [](const LogicalPiece& a, const LogicalPiece& b) { return a.offset < b.offset; });
  return pieces;
}

/// "model.norm.weight", or with the rows or columns that are meant.
std::string describe(const LogicalPiece& piece) {
  std::ostringstream text;
  text << piece.name;
  if (piece.num_rows < piece.shape[0]) {
    text << " rows [" << piece.row_begin << ", " << piece.row_begin + piece.num_rows << ")";
  } else if (piece.shape.rank() > 1 && piece.num_columns < piece.shape[1]) {
    text << " columns [" << piece.column_begin << ", " << piece.column_begin + piece.num_columns
         << ")";
  }
  return text.str();
}

struct Copy {
  int64_t rank, hash;
};

/// "ranks 2, 5", those whose hash is not the one that most have; of as many the lowest rank's.
std::string outliers(const std::vector<Copy>& copies) {
  std::map<int64_t, int64_t> counts;
  for (const Copy& copy : copies) ++counts[copy.hash];
  int64_t common = copies.front().hash;
  for (const Copy& copy : copies) {
    if (counts[copy.hash] > counts[common]) common = copy.hash;
  }
  std::string text;
  std::set<int64_t> ranks;
  for (const Copy& copy : copies) {
    if (copy.hash == common || !ranks.insert(copy.rank).second) continue;
    text += (ranks.size() > 1 ? ", " : "") + std::to_string(copy.rank);
  }
  return (ranks.size() == 1 ? "rank " : "ranks ") + text;
}

}  // namespace

std::string find_different_replicas(const Transformer& model, const Communicator& world,
                                    const Stream& stream) {
  const std::vector<LogicalPiece> mine = sorted_pieces(model.layout());
  const auto num_pieces = static_cast<int64_t>(mine.size());
  std::vector<int64_t> offsets;
  for (const LogicalPiece& piece : mine) offsets.push_back(piece.offset);
  offsets.push_back(model.layout().num_elements());
  const Buffer hashes({num_pieces}, DType::kInt64, model.device());
  bit_hashes(hashes.view(), model.weights(), offsets, stream);
  Buffer memory;
  const TensorView host = on_host(hashes.view(), memory, stream);
  std::vector<int64_t> all(world.size() * num_pieces);
  world.all_gather(view_of(all), host, Stream());

  // The same piece of every rank's share is of the same tensor, but maybe of another part of it.
  const ModelShare& share = model.layout().share();
  std::vector<std::vector<LogicalPiece>> places;  // by tensor-parallel rank
  for (int64_t rank = 0; rank < share.tensor_parallel_size; ++rank) {
    ModelShare other = share;
    other.tensor_parallel_rank = rank;
    places.push_back(sorted_pieces(ParameterLayout(
        model.config(), share.num_shards * model.layout().sizes().vocab_size, other)));
  }
  using Place = std::tuple<std::string, int64_t, int64_t>;
  std::map<Place, std::pair<std::vector<Copy>, LogicalPiece>> copies;
  for (int64_t rank = 0; rank < world.size(); ++rank) {
    for (int64_t i = 0; i < num_pieces; ++i) {
      const LogicalPiece& piece = places[rank % share.tensor_parallel_size][i];
      auto& [of_place, what] = copies[{piece.name, piece.row_begin, piece.column_begin}];
      of_place.push_back({rank, all[rank * num_pieces + i]});
      what = piece;
    }
  }
  for (const auto& [place, found] : copies) {
    const auto& [of_place, what] = found;
    const bool all_equal = std::all_of(of_place.begin(), of_place.end(), [&](const Copy& copy) {
      return copy.hash == of_place.front().hash;
    });
    if (!all_equal) return describe(what) + " is not the same on " + outliers(of_place);
  }
  return "";
}

}  // namespace mirabelle
