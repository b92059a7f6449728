#include "mirabelle/evaluation/predictions.h"

#include <algorithm>
#include <limits>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
namespace fs = std::filesystem;
namespace {

/// One rank's lines, "USER_INDEX\tJSON", read one by one. A last line that was cut is none.
class PartReader {
 public:
  explicit PartReader(const fs::path& path) : path_(path), in_(path) {
    MIRABELLE_CHECK(in_.is_open(), "cannot read ", path.string(),
                    ", which another rank has written: do all ranks see the same folder?");
    next();
  }
  /// "USER_INDEX\tJSON", the current line.
  std::string indexed_line() const { return std::to_string(user_) + "\t" + line_; }
  int64_t user() const { return user_; }  ///< of the current line; the largest integer at the end
  const std::string& line() const { return line_; }
  void next() {
    user_ = std::numeric_limits<int64_t>::max();
    if (!std::getline(in_, line_) || in_.eof()) return;
    const size_t tab = line_.find('\t');
    MIRABELLE_CHECK(tab != std::string::npos, path_.string(), ": a line without an index");
    user_ = std::stoll(line_.substr(0, tab));
    line_.erase(0, tab + 1);
  }

 private:
  fs::path path_;
  std::ifstream in_;
  int64_t user_ = 0;
  std::string line_;
};

/// All lines of all parts, by user: write(part) for each. A user that several parts have, since a
/// run was killed between merging them and removing them, comes once.
template <typename Write>
void for_each_line(const std::vector<fs::path>& paths, const Write& write) {
  std::vector<PartReader> parts;
  for (const fs::path& path : paths) parts.emplace_back(path);
  int64_t last = -1;
  while (!parts.empty()) {
    const auto next = std::min_element(
        parts.begin(), parts.end(),
        [](const PartReader& a, const PartReader& b) { return a.user() < b.user(); });
    if (next->user() == std::numeric_limits<int64_t>::max()) break;
    if (next->user() != last) write(*next);
    last = next->user();
    next->next();
  }
}

fs::path with_suffix(const fs::path& path, const std::string& suffix) {
  return path.string() + suffix;
}
fs::path done_path(const fs::path& path) { return with_suffix(path, ".done"); }
fs::path run_path(const fs::path& path) { return with_suffix(path, ".run"); }

/// What ranks have left beside the target, and what was merged of it before.
std::vector<fs::path> left_parts(const fs::path& path) {
  std::vector<fs::path> parts;
  const fs::path folder = path.has_parent_path() ? path.parent_path() : ".";
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    if (entry.path().filename().string().starts_with(path.filename().string() + ".rank")) {
      parts.push_back(entry.path());
    }
  }
  if (fs::exists(done_path(path))) parts.push_back(done_path(path));
  return parts;
}

/// Merges all that was left in PATH.done, if it is of this run, else removes it.
void merge_left_parts(const fs::path& path, const std::string& run) {
  const std::vector<fs::path> parts = left_parts(path);
  const bool is_same = fs::exists(run_path(path)) && read_text_file(run_path(path)) == run;
  if (is_same) {
    AtomicPath done(done_path(path));
    std::ofstream out(done.path());
    for_each_line(parts, [&](const PartReader& line) { out << line.indexed_line() << '\n'; });
    out.close();
    MIRABELLE_CHECK(!out.fail(), "cannot write ", done.path().string());
    done.commit();
  }
  for (const fs::path& part : parts) {
    if (!is_same || part != done_path(path)) fs::remove(part);
  }
  write_text_file(run_path(path), run);
}

}  // namespace

std::vector<int64_t> recover_predictions(const fs::path& path, const std::string& run,
                                         const Communicator& world) {
  if (world.rank() == 0) merge_left_parts(path, run);
  world.barrier();
  std::vector<int64_t> users;
  if (!fs::exists(done_path(path))) return users;
  for_each_line({done_path(path)}, [&](const PartReader& line) { users.push_back(line.user()); });
  return users;
}

PredictionWriter::PredictionWriter(const fs::path& path, const Corpus& corpus, Targets targets,
                                   const Communicator& communicator, bool resumable)
    : path_(path), targets_(targets), communicator_(communicator), resumable_(resumable) {
  for (int64_t item = 0; item < corpus.num_items(); ++item) {
    item_ids_.push_back(corpus.item_id(item).dump());
  }
  if (path_.has_parent_path()) fs::create_directories(path_.parent_path());
  part_.open(part_path(communicator.rank()));
  MIRABELLE_CHECK(part_.is_open(), "cannot write ", part_path(communicator.rank()).string());
}

PredictionWriter::~PredictionWriter() {
  if (resumable_) return;
  std::error_code ignored;
  fs::remove(part_path(communicator_.rank()), ignored);
}

fs::path PredictionWriter::part_path(int rank) const {
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
  if (resumable_) part_.flush();
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
  std::vector<fs::path> parts;
  for (int rank = 0; rank < communicator_.size(); ++rank) parts.push_back(part_path(rank));
  if (resumable_ && fs::exists(done_path(path_))) parts.push_back(done_path(path_));
  AtomicPath whole(path_);
  std::ofstream out(whole.path());
  for_each_line(parts, [&](const PartReader& line) { out << line.line() << '\n'; });
  out.close();
  MIRABELLE_CHECK(!out.fail(), "cannot write ", path_.string(), ": the disk did not take it all");
  whole.commit();
  if (!resumable_) return;
  for (const fs::path& part : parts) fs::remove(part);
  fs::remove(run_path(path_));
}

}  // namespace mirabelle
