#include "mirabelle/training/checkpoint.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <vector>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"
#include "tensor_file.h"

namespace mirabelle {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kSchema = "mirabelle-checkpoint";
constexpr int kVersion = 2;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kConfig = "config.yaml";
constexpr const char* kTokenizer = "tokenizer.h5";

json to_json(const TrainingState& state) {
  return {
      {"step", state.step},
      {"cursor",
       {{"epoch", state.cursor.epoch}, {"block", state.cursor.block}, {"part", state.cursor.part}}},
      {"tokens", state.tokens},
      {"loss", state.loss},
      {"seconds", state.seconds},
      {"step_seconds", state.step_seconds},
      {"best_ndcg", state.best_ndcg},
      {"best_recall", state.best_recall},
      {"best_step", state.best_step},
      {"validations_since_best", state.validations_since_best},
      {"prefix_weights", state.prefix_weights},
      {"good_steps", state.good_steps},
      {"mean_grad_norm", state.mean_grad_norm},
      {"skipped_steps", state.skipped_steps},
      {"bad_steps", state.bad_steps},
      {"bad_steps_in_row", state.bad_steps_in_row},
      {"rollbacks", state.rollbacks},
      {"validation_is_owed", state.validation_is_owed},
      {"finished", state.finished},
      {"optimizer", state.optimizer}};
}

TrainingState state_from_json(const json& state, const std::string& where) {
  TrainingState result;
  const auto get = [&]<typename T>(const json& object, const char* key, T& value) {
    value = json_field<T>(object, key, where);
  };
  const json cursor = json_field<json>(state, "cursor", where);
  get(cursor, "epoch", result.cursor.epoch);
  get(cursor, "block", result.cursor.block);
  get(cursor, "part", result.cursor.part);
  get(state, "step", result.step);
  get(state, "tokens", result.tokens);
  get(state, "loss", result.loss);
  get(state, "seconds", result.seconds);
  get(state, "step_seconds", result.step_seconds);
  get(state, "best_ndcg", result.best_ndcg);
  get(state, "best_recall", result.best_recall);
  get(state, "best_step", result.best_step);
  get(state, "validations_since_best", result.validations_since_best);
  get(state, "finished", result.finished);
  // older checkpoints of this version do not have these
  const auto get_or = [&]<typename T>(const char* key, T& value) {
    value = json_field_or<T>(state, key, where, value);
  };
  get_or("prefix_weights", result.prefix_weights);
  get_or("good_steps", result.good_steps);
  get_or("mean_grad_norm", result.mean_grad_norm);
  get_or("skipped_steps", result.skipped_steps);
  get_or("bad_steps", result.bad_steps);
  get_or("bad_steps_in_row", result.bad_steps_in_row);
  get_or("rollbacks", result.rollbacks);
  get_or("validation_is_owed", result.validation_is_owed);
  get_or("optimizer", result.optimizer);
  for (const int64_t count :
       {result.step, result.tokens, result.cursor.epoch, result.cursor.block, result.cursor.part,
        result.validations_since_best, result.good_steps, result.skipped_steps, result.bad_steps,
        result.bad_steps_in_row, result.rollbacks}) {
    MIRABELLE_CHECK_DATA(count >= 0, where, ": holds the count ", count, ", wanted at least 0");
  }
  return result;
}

struct Manifest {
  TrainingState state;
  std::vector<std::string> tensor_files;      ///< names in the folder
  std::map<std::string, std::string> sha256;  ///< of each file
};

Manifest read_manifest(const fs::path& folder) {
  const std::string where = (folder / kManifest).string();
  const json manifest = parse_json(read_text_file(folder / kManifest), where);
  const auto schema = json_field<std::string>(manifest, "schema", where);
  MIRABELLE_CHECK_DATA(schema == kSchema, where, ": not a checkpoint's manifest (schema \"", schema,
                       "\")");
  const auto version = json_field<int64_t>(manifest, "version", where);
  MIRABELLE_CHECK_DATA(version == kVersion, where, ": checkpoint version ", version, ", wanted ",
                       kVersion);
  Manifest result;
  result.state = state_from_json(json_field<json>(manifest, "state", where), where + ": state");
  result.tensor_files = json_field<std::vector<std::string>>(manifest, "tensor_files", where);
  for (const std::string& name : result.tensor_files) {
    MIRABELLE_CHECK_DATA(is_plain_name(name), where, ": tensor_files holds ", shown(name),
                         ", wanted names in the folder");
  }
  const json sums = json_field<json>(manifest, "sha256", where);
  for (const auto& [name, sum] : sums.items()) {
    result.sha256[name] = json_value<std::string>(sum, where + ": sha256 of " + shown(name));
  }
  return result;
}

void verify(const fs::path& folder, const Manifest& manifest, const std::string& name) {
  const fs::path path = folder / name;
  const auto sum = manifest.sha256.find(name);
  MIRABELLE_CHECK_DATA(sum != manifest.sha256.end() && sha256_of_file(path) == sum->second,
                       path.string(), ": its SHA-256 is not the manifest's: truncated or edited");
}

/// The tensor files' names. Each rank verifies some of all files.
std::vector<std::string> verified_tensor_files(const fs::path& folder, const Communicator& world) {
  const Manifest manifest = read_manifest(folder);
  std::vector<std::string> names = manifest.tensor_files;
  names.insert(names.end(), {kConfig, kTokenizer});
  for (size_t i = world.rank(); i < names.size(); i += world.size()) {
    verify(folder, manifest, names[i]);
  }
  return manifest.tensor_files;
}

/// The SHA-256 of files that the disk has, by their names.
json checksums(const fs::path& folder, const std::vector<std::string>& names) {
  json sums = json::object();
  for (const std::string& name : names) {
    sync_to_disk(folder / name);
    sums[name] = sha256_of_file(folder / name);
  }
  return sums;
}

void write_manifest(const fs::path& folder, const TrainingState& state,
                    const std::vector<std::string>& tensor_files, const json& sums) {
  const json manifest = {
      {"schema", kSchema},       {"version", kVersion},          {"mirabelle", MIRABELLE_VERSION},
      {"state", to_json(state)}, {"tensor_files", tensor_files}, {"sha256", sums}};
  write_text_file(folder / kManifest, manifest.dump(2) + "\n");
}

std::string tensor_file_name(int rank, int num_ranks) {
  char name[64];
  std::snprintf(name, sizeof name, "tensors-%05d-of-%05d.h5", rank + 1, num_ranks);
  return name;
}

/// Every rank runs `body`; then all throw what the first of those that failed has thrown.
/// Collective.
template <typename Body>
void run_together(const Communicator& world, Body body) {
  std::string failure;  // a digit for the kind, then the message
  const auto describe = [](ErrorKind kind, const char* message) {
    return std::to_string(static_cast<int>(kind)) + message;
  };
  try {
    body();
  } catch (const Error& error) {
    failure = describe(error.kind(), error.what());
  } catch (const std::exception& error) {
    failure = describe(ErrorKind::kOther, error.what());
  }
  for (const std::string& text : all_gather_texts(world, failure)) {
    if (!text.empty()) throw Error(static_cast<ErrorKind>(text[0] - '0'), text.substr(1));
  }
}

/// In the order of their steps; either the whole ones or the partial ones.
std::vector<fs::path> list_checkpoints(const fs::path& output, bool partial = false) {
  std::vector<fs::path> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(output / "checkpoints", none)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && name.ends_with(".partial") == partial) {
      found.push_back(entry.path());
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

fs::path best_marker(const fs::path& output) { return output / "checkpoints" / "best"; }

std::optional<fs::path> best_checkpoint(const fs::path& output) {
  if (!fs::exists(best_marker(output))) return std::nullopt;
  std::string name = read_text_file(best_marker(output));
  while (!name.empty() && name.back() == '\n') name.pop_back();
  MIRABELLE_CHECK_DATA(name.starts_with("step-") && is_plain_name(name),
                       best_marker(output).string(), ": names no checkpoint: ", shown(name));
  return output / "checkpoints" / name;
}

}  // namespace

TrainingState read_training_state(const fs::path& folder) { return read_manifest(folder).state; }

std::vector<std::string> checkpoint_tensor_files(const fs::path& folder) {
  return read_manifest(folder).tensor_files;
}

void verify_checkpoint(const fs::path& folder) {
  verified_tensor_files(folder, *make_self_communicator());
}

std::string read_checkpoint_config(const fs::path& folder) {
  verify(folder, read_manifest(folder), kConfig);
  return read_text_file(folder / kConfig);
}

void read_checkpoint_tensors(const fs::path& folder, const ParameterLayout& layout,
                             const CheckpointTensors& tensors, const Communicator& world) {
  std::vector<std::string> files;
  run_together(world, [&] { files = verified_tensor_files(folder, world); });
  run_together(world, [&] { read_tensor_files(folder, files, layout, tensors); });
}

void complete_checkpoint(const fs::path& folder, const TrainingState& state,
                         const std::vector<std::string>& tensor_files,
                         const std::string& config_text) {
  write_text_file(folder / kConfig, config_text);
  std::vector<std::string> names = tensor_files;
  names.insert(names.end(), {kConfig, kTokenizer});
  write_manifest(folder, state, tensor_files, checksums(folder, names));
}

CheckpointWriter::CheckpointWriter(const Communicator& world, const ParameterLayout& layout,
                                   const std::vector<FlatRange>& owned, fs::path tokenizer_file)
    : world_(world),
      tokenizer_file_(std::move(tokenizer_file)),
      tensors_(owned_tensors(layout, owned)) {
  int64_t num_owned = 0;
  for (const FlatRange& range : owned) num_owned += range.size();
  for (Buffer* buffer : {&weights_, &exp_avg_, &exp_avg_sq_}) {
    *buffer = Buffer({num_owned}, DType::kFloat32);
  }
}

CheckpointWriter::~CheckpointWriter() = default;

CheckpointTensors CheckpointWriter::prepare() {
  commit();
  return {weights_.view(), exp_avg_.view(), exp_avg_sq_.view()};
}

void CheckpointWriter::start(const fs::path& folder, const TrainingState& state,
                             const std::string& config_text) {
  MIRABELLE_CHECK(!is_pending(), folder.string(), ": the checkpoint before is still being written");
  run_together(world_, [&] {
    if (world_.rank() != 0) return;
    auto target = std::make_unique<AtomicPath>(folder);
    fs::create_directory(target->path());
    target_ = std::move(target);
  });
  state_ = state;
  const fs::path path = broadcast_text(world_, target_ ? target_->path().string() : "", 0);
  job_ = std::async(std::launch::async,
                    [this, path, config_text] { return write_files(path, config_text); });
}

bool CheckpointWriter::is_written() const {
  return is_pending() && job_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

/// In the background, so without communication: this rank's files, and the SHA-256 of each as JSON.
std::string CheckpointWriter::write_files(const fs::path& folder,
                                          const std::string& config_text) const {
  const CheckpointTensors values = {weights_.view(), exp_avg_.view(), exp_avg_sq_.view()};
  const std::string bad = find_not_finite(tensors_, values);
  MIRABELLE_CHECK(bad.empty(), folder.string(), ": rank ", world_.rank(), " has a value in ", bad,
                  " that is not finite, so there is no such checkpoint");
  std::vector<std::string> names{tensor_file_name(world_.rank(), world_.size())};
  write_tensor_file(folder / names[0], tensors_, values);
  if (world_.rank() == 0) {
    std::error_code error;
    fs::copy_file(tokenizer_file_, folder / kTokenizer, error);
    MIRABELLE_CHECK_DATA(!error, tokenizer_file_.string(), ": cannot copy: ", error.message());
    write_text_file(folder / kConfig, config_text);
    names.insert(names.end(), {kConfig, kTokenizer});
  }
  return checksums(folder, names).dump();
}

void CheckpointWriter::commit() {
  if (!is_pending()) return;
  const std::unique_ptr<AtomicPath> target = std::move(target_);  // removes the folder on an error
  std::string my_sums;
  run_together(world_, [&] { my_sums = job_.get(); });
  json sums = json::object();
  std::vector<std::string> tensor_files;
  for (const std::string& text : all_gather_texts(world_, my_sums)) {
    sums.update(parse_json(text, "a rank"));
  }
  for (int rank = 0; rank < world_.size(); ++rank) {
    tensor_files.push_back(tensor_file_name(rank, world_.size()));
  }
  run_together(world_, [&] {
    if (world_.rank() != 0) return;
    write_manifest(target->path(), state_, tensor_files, sums);
    target->commit();
  });
}

std::optional<fs::path> newest_checkpoint(const fs::path& output) {
  const std::vector<fs::path> all = list_checkpoints(output);
  if (all.empty()) return std::nullopt;
  return all.back();
}

std::optional<fs::path> resumable_checkpoint(const fs::path& output) {
  const auto newest = newest_checkpoint(output);
  const bool is_over =
      newest && read_training_state(*newest).finished && fs::exists(output / "summary.json");
  return is_over ? std::nullopt : newest;
}

int64_t num_checkpoints(const fs::path& output) {
  return static_cast<int64_t>(list_checkpoints(output).size());
}

fs::path find_checkpoint(const fs::path& path) {
  MIRABELLE_CHECK_USAGE(!path.empty(),
                        "evaluation.checkpoint must name a checkpoint or a training output");
  if (fs::exists(path / kManifest)) return path;
  if (const auto best = best_checkpoint(path)) return *best;
  if (const auto newest = newest_checkpoint(path)) return *newest;
  throw_error(ErrorKind::kUsage, path.string(),
              ": neither a checkpoint nor a training output with checkpoints");
}

fs::path checkpoint_folder(const fs::path& output, int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(step));
  return output / "checkpoints" / name;
}

void mark_best_checkpoint(const fs::path& output, int64_t step) {
  write_text_file(best_marker(output), checkpoint_folder(output, step).filename().string() + "\n");
}

void remove_old_checkpoints(const fs::path& output, int64_t keep) {
  const std::vector<fs::path> all = list_checkpoints(output);
  const auto best = best_checkpoint(output);
  for (size_t i = 0; i + keep < all.size(); ++i) {
    if (best && all[i].filename() == best->filename()) continue;
    const AtomicPath removed(all[i]);  // takes it out of sight first, then removes it
    fs::rename(all[i], removed.path());
  }
}

void remove_partial_checkpoints(const fs::path& output) {
  for (const fs::path& folder : list_checkpoints(output, /*partial=*/true)) fs::remove_all(folder);
}

}  // namespace mirabelle
