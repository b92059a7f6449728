#include "recommend_lines.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <sstream>
#include <unordered_map>

#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/evaluation/user_histories.h"

namespace mirabelle {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

/// The data set's IDs of items, as text, and as JSON writes them.
struct ItemNames {
  explicit ItemNames(const Corpus& corpus) {
    for (int64_t item = 0; item < corpus.num_items(); ++item) {
      const json id = corpus.item_id(item);
      as_json.push_back(id.dump());
      numbers[id_text(id)] = static_cast<int32_t>(item);
    }
  }
  std::vector<std::string> as_json;
  std::unordered_map<std::string, int32_t> numbers;
};

struct Line {
  int64_t number = 0;  ///< in the input, from 1
  std::string text;
};

/// At most `count` lines that are not blank.
std::vector<Line> read_lines(std::istream& in, int64_t count, int64_t& number) {
  std::vector<Line> lines;
  for (std::string text; static_cast<int64_t>(lines.size()) < count && std::getline(in, text);) {
    ++number;
    if (text.find_first_not_of(" \t\r") != std::string::npos) lines.push_back({number, text});
  }
  return lines;
}

/// A user as a line says it.
struct Asked {
  json user;
  std::vector<int32_t> history, excluded;
};

Asked parse(const Line& line, const ItemNames& items, bool excludes_history) {
  const std::string where = "standard input, line " + std::to_string(line.number);
  const json object = parse_json(line.text, where);
  Asked asked{json_field<json>(object, "user", where), {}, {}};
  for (const json& id : json_field<std::vector<json>>(object, "items", where)) {
    const auto found = items.numbers.find(id_text(id));
    MIRABELLE_CHECK_DATA(found != items.numbers.end(), where, ": the catalogue has no item ",
                         shown(id));
    asked.history.push_back(found->second);
  }
  if (excludes_history) asked.excluded = distinct_items(asked.history);
  return asked;
}

/// The answers to some lines, one line each.
std::string answers(std::span<const Line> lines, const ItemNames& items, bool excludes_history,
                    int64_t count, const Recommender& recommender) {
  std::vector<Asked> asked;
  for (const Line& line : lines) asked.push_back(parse(line, items, excludes_history));
  std::vector<RecommendationQuery> queries;
  for (const Asked& user : asked) queries.push_back({user.history, user.excluded});
  const RankedLists lists = recommender(queries);
  std::ostringstream out;
  for (size_t i = 0; i < asked.size(); ++i) {
    const auto found = lists.list(static_cast<int64_t>(i));
    const auto scores = lists.list_scores(static_cast<int64_t>(i));
    const size_t size = std::min<size_t>(found.size(), count);
    out << "{\"user\": " << asked[i].user.dump() << ", \"items\": [";
    for (size_t k = 0; k < size; ++k) out << (k ? ", " : "") << items.as_json[found[k]];
    out << "], \"scores\": [";
    for (size_t k = 0; k < size; ++k) out << (k ? ", " : "") << json(scores[k]).dump();
    out << "]}\n";
  }
  return out.str();
}

/// Rank 0's output. What a killed run has left of a last line is cut off.
class Answers {
 public:
  explicit Answers(const std::string& path) : path_(path) {
    if (path.empty()) return;
    if (fs::exists(partial())) {
      std::string text = read_text_file(partial());
      text.resize(text.rfind('\n') + 1);  // 0 if there is none
      num_done_ = std::count(text.begin(), text.end(), '\n');
      write_text_file(partial(), text);
    } else {
      check_writable(partial());
    }
    file_.open(partial(), std::ios::app);
    MIRABELLE_CHECK_DATA(file_.is_open(), partial().string(), ": cannot write");
  }
  int64_t num_done() const { return num_done_; }
  void write(const std::string& text) {
    std::ostream& out = path_.empty() ? std::cout : file_;
    out << text << std::flush;
    MIRABELLE_CHECK_DATA(out.good(), path_.empty() ? "standard output" : partial().string(),
                         ": cannot write");
  }
  void finish() {
    if (path_.empty()) return;
    file_.close();
    fs::rename(partial(), path_);
  }

 private:
  fs::path partial() const { return path_ + ".partial"; }
  std::string path_;
  std::ofstream file_;
  int64_t num_done_ = 0;
};

/// Lines as a text that ranks send each other, and back.
std::string to_text(const std::vector<Line>& lines) {
  json all = json::array();
  for (const Line& line : lines) all.push_back({line.number, line.text});
  return lines.empty() ? "" : all.dump();
}
std::vector<Line> from_text(const std::string& text) {
  std::vector<Line> lines;
  for (const json& line : json::parse(text)) lines.push_back({line[0], line[1]});
  return lines;
}

}  // namespace

int64_t recommend_lines(TrainedModel& model, const Config& config, const LineStreams& streams) {
  const ParallelContext& ranks = model.ranks();
  const Communicator& world = ranks.world();
  const bool is_root = world.rank() == 0;
  const ItemNames items(model.corpus());
  const Recommender recommender = model.recommender();
  std::optional<Answers> output;
  if (is_root) output.emplace(streams.output);
  Progress progress("recommend", is_root && !streams.output.empty());
  const int64_t share = config.evaluation.batch_users;  // of each data-parallel rank
  int64_t number = 0, num_users = 0;
  if (is_root)
    num_users = static_cast<int64_t>(read_lines(streams.in, output->num_done(), number).size());
  while (true) {
    std::string text;
    if (is_root) text = to_text(read_lines(streams.in, share * ranks.data().size(), number));
    text = broadcast_text(world, text, 0);
    if (text.empty()) break;
    const std::vector<Line> lines = from_text(text);
    const auto size = static_cast<int64_t>(lines.size());
    const int64_t begin = std::min(ranks.data().rank() * share, size);
    const auto mine = std::span(lines).subspan(begin, std::min(share, size - begin));
    const std::string found =
        answers(mine, items, config.evaluation.exclude_history, streams.count, recommender);
    // of a tensor-parallel group one speaks
    const auto all = all_gather_texts(world, ranks.tensor().rank() == 0 ? found : "");
    num_users += size;
    if (!is_root) continue;
    for (const std::string& of_rank : all) output->write(of_rank);
    progress.update(num_users, 0);
  }
  if (is_root) output->finish();
  return num_users;
}

}  // namespace mirabelle
