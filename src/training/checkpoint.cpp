#include "mirabelle/training/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/hdf5_file.h"

namespace mirabelle {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kSchema = "mirabelle-checkpoint";
constexpr int kVersion = 1;

json to_json(const TrainingState& state) {
  return {
      {"step", state.step},
      {"cursor",
       {{"epoch", state.cursor.epoch}, {"block", state.cursor.block}, {"part", state.cursor.part}}},
      {"tokens", state.tokens},
      {"seconds", state.seconds},
      {"step_seconds", state.step_seconds},
      {"best_ndcg", state.best_ndcg},
      {"best_recall", state.best_recall},
      {"best_step", state.best_step},
      {"validations_since_best", state.validations_since_best},
      {"finished", state.finished}};
}

TrainingState state_from_json(const json& state) {
  TrainingState result;
  state.at("step").get_to(result.step);
  state.at("cursor").at("epoch").get_to(result.cursor.epoch);
  state.at("cursor").at("block").get_to(result.cursor.block);
  state.at("cursor").at("part").get_to(result.cursor.part);
  state.at("tokens").get_to(result.tokens);
  state.at("seconds").get_to(result.seconds);
  state.at("step_seconds").get_to(result.step_seconds);
  state.at("best_ndcg").get_to(result.best_ndcg);
  state.at("best_recall").get_to(result.best_recall);
  state.at("best_step").get_to(result.best_step);
  state.at("validations_since_best").get_to(result.validations_since_best);
  state.at("finished").get_to(result.finished);
  return result;
}

json read_manifest(const fs::path& folder) {
  const fs::path path = folder / "manifest.json";
  const json manifest = json::parse(read_text_file(path), nullptr, /*allow_exceptions=*/false);
  MIRABELLE_CHECK_DATA(manifest.is_object() && manifest.value("schema", "") == kSchema,
                       path.string(), ": not a checkpoint's manifest");
  const int version = manifest.value("version", 0);
  MIRABELLE_CHECK_DATA(version == kVersion, path.string(), ": checkpoint version ", version,
                       ", wanted ", kVersion);
  return manifest;
}

/// The path of a file of the checkpoint, after its checksum was compared.
fs::path verified(const fs::path& folder, const std::string& name) {
  const json manifest = read_manifest(folder);
  const fs::path path = folder / name;
  const std::string wanted = manifest.value("sha256", json::object()).value(name, "");
  MIRABELLE_CHECK_DATA(sha256_of_file(path) == wanted, path.string(),
                       ": its SHA-256 is not the manifest's: truncated or edited");
  return path;
}

/// Calls body(pieces of one logical tensor) for each.
template <typename Body>
void for_each_tensor(const std::vector<LogicalPiece>& pieces, Body body) {
  for (size_t begin = 0, end; begin < pieces.size(); begin = end) {
    end = begin;
    while (end < pieces.size() && pieces[end].name == pieces[begin].name) ++end;
    body(std::span(pieces).subspan(begin, end - begin));
  }
}

int64_t columns_of(const LogicalPiece& piece) {
  return piece.shape.rank() == 1 ? 1 : piece.shape[1];
}

void write_tensors(Hdf5File& file, const std::string& group, const ParameterLayout& layout,
                   const TensorView& flat) {
  const std::vector<LogicalPiece> all_pieces = layout.pieces();
  Buffer memory;
  const float* values = on_host(flat, memory, Stream(flat.device)).as<float>();
  std::vector<float> tensor;
  for_each_tensor(all_pieces, [&](std::span<const LogicalPiece> pieces) {
    tensor.clear();
    for (const LogicalPiece& piece : pieces) {
      const float* first = values + piece.offset;
      tensor.insert(tensor.end(), first, first + piece.num_rows * columns_of(piece));
    }
    file.write(group + pieces.front().name, view_of(tensor.data(), pieces.front().shape));
  });
}

void read_tensors(const Hdf5File& file, const std::string& group, const ParameterLayout& layout,
                  const TensorView& flat) {
  const std::vector<LogicalPiece> all_pieces = layout.pieces();
  const Buffer host = flat.device == Device::kCpu ? Buffer() : Buffer(flat.shape, flat.dtype);
  const TensorView on_host = flat.device == Device::kCpu ? flat : host.view();
  float* values = on_host.as<float>();
  size_t num_tensors = 0;
  for_each_tensor(all_pieces, [&](std::span<const LogicalPiece> pieces) {
    ++num_tensors;
    const std::string name = group + pieces.front().name;
    std::ostringstream wanted, found;
    wanted << pieces.front().shape;
    found << file.shape(name);
    MIRABELLE_CHECK_DATA(wanted.str() == found.str(), file.path().string(), ": ", name, " is ",
                         found.str(), ", the configuration wants ", wanted.str());
    for (const LogicalPiece& piece : pieces) {
      const Shape rows =
          piece.shape.rank() == 1 ? Shape{piece.num_rows} : Shape{piece.num_rows, piece.shape[1]};
      file.read_rows(name, piece.row_begin, view_of(values + piece.offset, rows));
    }
  });
  const size_t stored = file.names(group.empty() ? "/" : group).size();
  MIRABELLE_CHECK_DATA(stored == num_tensors, file.path().string(), ": holds ", stored,
                       " tensors, the configuration wants ", num_tensors);
  if (flat.device == Device::kCpu) return;
  const Stream stream(flat.device);
  copy(flat, on_host, stream);
  stream.synchronize();
}

std::vector<fs::path> list_checkpoints(const fs::path& output) {
  std::vector<fs::path> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(output / "checkpoints", none)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && !name.ends_with(".partial")) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

fs::path best_marker(const fs::path& output) { return output / "checkpoints" / "best"; }

std::optional<fs::path> best_checkpoint(const fs::path& output) {
  if (!fs::exists(best_marker(output))) return std::nullopt;
  std::string name = read_text_file(best_marker(output));
  while (!name.empty() && name.back() == '\n') name.pop_back();
  return output / "checkpoints" / name;
}

}  // namespace

void write_checkpoint(const fs::path& folder, const TrainingState& state,
                      const ParameterLayout& layout, const CheckpointTensors& tensors,
                      const std::string& config_text, const fs::path& tokenizer_file) {
  AtomicPath target(folder);
  const fs::path& path = target.path();
  fs::create_directories(path);
  Hdf5File weights = Hdf5File::create(path / "weights.h5");
  write_tensors(weights, "", layout, tensors.weights);
  weights.close();
  Hdf5File optimizer = Hdf5File::create(path / "optimizer.h5");
  write_tensors(optimizer, "exp_avg/", layout, tensors.exp_avg);
  write_tensors(optimizer, "exp_avg_sq/", layout, tensors.exp_avg_sq);
  optimizer.close();
  fs::copy_file(tokenizer_file, path / "tokenizer.h5");
  write_text_file(path / "config.yaml", config_text);

  json sums = json::object();
  for (const char* name : {"config.yaml", "optimizer.h5", "tokenizer.h5", "weights.h5"}) {
    sums[name] = sha256_of_file(path / name);
  }
  const json manifest = {{"schema", kSchema},
                         {"version", kVersion},
                         {"mirabelle", MIRABELLE_VERSION},
                         {"state", to_json(state)},
                         {"sha256", sums}};
  write_text_file(path / "manifest.json", manifest.dump(2) + "\n");
  target.commit();
}

TrainingState read_training_state(const fs::path& folder) {
  const json manifest = read_manifest(folder);
  try {
    return state_from_json(manifest.at("state"));
  } catch (const json::exception& error) {
    throw_error(ErrorKind::kData, (folder / "manifest.json").string(), ": ", error.what());
  }
}

std::string read_checkpoint_config(const fs::path& folder) {
  return read_text_file(verified(folder, "config.yaml"));
}

void read_checkpoint_tensors(const fs::path& folder, const ParameterLayout& layout,
                             const CheckpointTensors& tensors) {
  if (tensors.weights) {
    read_tensors(Hdf5File::open(verified(folder, "weights.h5")), "", layout, tensors.weights);
  }
  if (tensors.exp_avg || tensors.exp_avg_sq) {
    const Hdf5File file = Hdf5File::open(verified(folder, "optimizer.h5"));
    if (tensors.exp_avg) read_tensors(file, "exp_avg/", layout, tensors.exp_avg);
    if (tensors.exp_avg_sq) read_tensors(file, "exp_avg_sq/", layout, tensors.exp_avg_sq);
  }
}

std::optional<fs::path> newest_checkpoint(const fs::path& output) {
  const std::vector<fs::path> all = list_checkpoints(output);
  if (all.empty()) return std::nullopt;
  return all.back();
}

fs::path find_checkpoint(const fs::path& path) {
  MIRABELLE_CHECK_USAGE(!path.empty(),
                        "evaluation.checkpoint must name a checkpoint or a training output");
  if (fs::exists(path / "manifest.json")) return path;
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
    if (!best || all[i].filename() != best->filename()) fs::remove_all(all[i]);
  }
}

}  // namespace mirabelle
