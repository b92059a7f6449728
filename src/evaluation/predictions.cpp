#include "mirabelle/evaluation/predictions.h"

#include <algorithm>
#include <limits>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
namespace {

/// One rank's lines, "USER_INDEX\tJSON", read one by one.
class PartReader {
 public:
  explicit PartReader(const std::filesystem::path& path) : path_(path), in_(path) {
    MIRABELLE_CHECK(in_.is_open(), "cannot read ", path.string(),
                    ", which another rank has written: do all ranks see the same folder?");
    next();
  }
  int64_t user() const { return user_; }  ///< of the current line; the largest integer at the end
  const std::string& line() const { return line_; }
  void next() {
    user_ = std::numeric_limits<int64_t>::max();
    if (!std::getline(in_, line_)) return;
    const size_t tab = line_.find('\t');
    MIRABELLE_CHECK(tab != std::string::npos, path_.string(), ": a line without an index");
    user_ = std::stoll(line_.substr(0, tab));
    line_.erase(0, tab + 1);
  }

 private:
  std::filesystem::path path_;
  std::ifstream in_;
  int64_t user_ = 0;
  std::string line_;
};

}  // namespace

PredictionWriter::PredictionWriter(const std::filesystem::path& path, const Corpus& corpus,
                                   Targets targets, const Communicator& communicator)
    : path_(path), targets_(targets), communicator_(communicator) {
  for (int64_t item = 0; item < corpus.num_items(); ++item) {
    item_ids_.push_back(corpus.item_id(item).dump());
  }
  if (path_.has_parent_path()) std::filesystem::create_directories(path_.parent_path());
  part_.open(part_path(communicator.rank()));
  MIRABELLE_CHECK(part_.is_open(), "cannot write ", part_path(communicator.rank()).string());
}

PredictionWriter::~PredictionWriter() {
  std::error_code ignored;
  std::filesystem::remove(part_path(communicator_.rank()), ignored);
}

std::filesystem::path PredictionWriter::part_path(int rank) const {
  return path_.string() + ".rank" + std::to_string(rank);
}

std::string PredictionWriter::id_list(std::span<const int32_t> items) const {
  std::string list = "[";
  for (size_t i = 0; i < items.size(); ++i) list += (i > 0 ? ", " : "") + item_ids_[items[i]];
  return list + "]";
}

void PredictionWriter::add(int64_t user, const nlohmann::json& user_id,
                           std::span<const int32_t> targets, std::span<const int32_t> items,
                           std::span<const double> scores) {
  part_ << user << "\t{\"user\": " << user_id.dump();
  if (targets_ == Targets::kWritten && targets.size() == 1) {
    part_ << ", \"target\": " << item_ids_[targets[0]];
  } else if (targets_ == Targets::kWritten) {
    part_ << ", \"targets\": " << id_list(targets);
  }
  part_ << ", \"items\": " << id_list(items) << ", \"scores\": [";
  for (size_t i = 0; i < scores.size(); ++i) {
    part_ << (i > 0 ? ", " : "") << nlohmann::json(scores[i]).dump();
  }
  part_ << "]}\n";
}

void PredictionWriter::finish() {
  part_.close();
  int32_t num_failures = part_.fail() ? 1 : 0;
  communicator_.all_reduce(view_of(&num_failures, {1}), ReduceOp::kSum, Stream());
  MIRABELLE_CHECK(num_failures == 0, "cannot write ", path_.string(), ": ", num_failures, " of ",
                  communicator_.size(), " ranks could not write all of their lines");
  if (communicator_.rank() == 0) merge_parts();
  communicator_.barrier();
}

void PredictionWriter::merge_parts() const {
  std::vector<PartReader> parts;
  for (int rank = 0; rank < communicator_.size(); ++rank) parts.emplace_back(part_path(rank));
  AtomicPath whole(path_);
  std::ofstream out(whole.path());
  while (true) {
    const auto next = std::min_element(
        parts.begin(), parts.end(),
        [](const PartReader& a, const PartReader& b) { return a.user() < b.user(); });
    if (next->user() == std::numeric_limits<int64_t>::max()) break;
    out << next->line() << '\n';
    next->next();
  }
  out.close();
  MIRABELLE_CHECK(!out.fail(), "cannot write ", path_.string(), ": the disk did not take it all");
  whole.commit();
}

}  // namespace mirabelle
