#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <numeric>

#include "mirabelle/config/command_line.h"
#include "mirabelle/config/config.h"
#include "mirabelle/convert/hugging_face_config.h"
#include "mirabelle/convert/model_files.h"
#include "mirabelle/convert/semantic_id_export.h"
#include "mirabelle/convert/vocabulary_map.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/data/npy.h"
#include "mirabelle/evaluation/beam_search.h"
#include "mirabelle/model/transformer.h"
#include "mirabelle/training/checkpoint.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kSummary =
    "Exchanges models with Hugging Face: writes a checkpoint as a folder that transformers, vLLM "
    "and "
    "SGLang load, and a folder of theirs (Llama, Qwen2, Qwen3) as a checkpoint; shows and compares "
    "both. Only a few rows of a model are in memory at a time.";
constexpr const char* kExamples =
    "mirabelle-convert export runs/beauty hf/beauty --dtype bfloat16\n"
    "mirabelle-convert import Qwen3-0.6B checkpoints/qwen3 --tokenizer tokenizer.h5\n"
    "mirabelle-convert inspect runs/beauty\n"
    "mirabelle-convert diff runs/beauty hf/beauty --tolerance 0.01";
constexpr const char* kExportHelp =
    "Writes a checkpoint, of whatever layout, as a folder of Hugging Face: config.json, "
    "model.safetensors (several files with an index above --max-file-gib), semantic_ids.json with "
    "the tokens of every item, and a tokenizer.";
constexpr const char* kImportHelp =
    "Writes a model of Hugging Face, or another checkpoint, as a checkpoint of weights alone, for "
    "training.init_from. With --tokenizer its vocabulary grows by the tokens of the semantic IDs.";
constexpr const char* kDiffHelp =
    "Compares two models, checkpoints or of Hugging Face, tensor by tensor: the largest difference "
    "and how many elements differ. Where one has more tokens, only those that both have.";
constexpr const char* kLogitsHelp =
    "Computes a model's logits for one sequence, float32 on the CPU, to compare other programs "
    "that "
    "serve it with: a .npy file [tokens of the sequence, vocab_size].";

/// A model on disk, of either format.
struct StoredModel {
  fs::path path;
  bool is_checkpoint = false;
  TransformerConfig model;
  int64_t max_positions = 0;
  TokenizerFile tokenizer;
  std::string config_text;  ///< as it is saved
  std::unique_ptr<TensorSource> source;
};

bool is_hugging_face(const fs::path& path) { return fs::exists(path / "config.json"); }

StoredModel open_hugging_face(const fs::path& path) {
  const HuggingFaceConfig config = read_hugging_face_config(path / "config.json");
  StoredModel stored{path, false, config.model, config.max_positions, {}, {}, {}};
  stored.tokenizer.kind = "text";
  stored.tokenizer.ids = SemanticIds().after_text(config.vocab_size);
  stored.config_text = read_text_file(path / "config.json");
  stored.source = open_hugging_face_tensors(path);
  const ParameterLayout layout(config.model, config.vocab_size);
  check_tensors(*stored.source, layout.logical_tensors(), path.string());
  return stored;
}

StoredModel open_checkpoint(const fs::path& path) {
  StoredModel stored{find_checkpoint(path), true, {}, 0, {}, {}, {}};
  stored.config_text = read_checkpoint_config(stored.path);
  const Config config = config_from_yaml(stored.config_text, stored.path.string());
  stored.model = config.model;
  stored.tokenizer = read_tokenizer_file(stored.path / "tokenizer.h5");
  stored.max_positions =
      std::max(config.training.max_sequence_tokens,
               max_search_tokens(stored.tokenizer.ids, config.data.history_length));
  stored.source = open_checkpoint_tensors(stored.path);
  const ParameterLayout layout(config.model, stored.tokenizer.ids.padded_vocab_size());
  check_tensors(*stored.source, layout.logical_tensors(), stored.path.string());
  return stored;
}

StoredModel open_model(const fs::path& path) {
  return is_hugging_face(path) ? open_hugging_face(path) : open_checkpoint(path);
}

/// Without the rows that pad the vocabulary.
int64_t num_parameters(const TransformerConfig& model, const SemanticIds& ids) {
  return ParameterLayout(model, ids.vocab_size()).num_elements();
}

/// Where nothing is yet, so that nothing is lost.
AtomicPath new_folder(const fs::path& path) {
  MIRABELLE_CHECK_USAGE(!fs::exists(path) || fs::is_empty(path), path.string(),
                        ": exists, wanted a new folder");
  return AtomicPath(path);
}

struct ExportArguments {
  std::string checkpoint, output, dtype = "float32";
  double max_file_gib = 5;
  int64_t max_positions = 0;
};

void add_export_options(CLI::App& command, ExportArguments& to) {
  command.add_option("CHECKPOINT", to.checkpoint, "A checkpoint, or a training output: its best")
      ->required();
  command.add_option("FOLDER", to.output, "The folder to write; must not exist")->required();
  command.add_option("--dtype", to.dtype, "Of the weights: float32, or bfloat16 (rounded)")
      ->capture_default_str();
  command.add_option("--max-file-gib", to.max_file_gib, "Largest file of weights")
      ->capture_default_str();
  command.add_option("--max-positions", to.max_positions,
                     "max_position_embeddings of config.json; 0: the longest sequence that the "
                     "configuration trains or ranks with");
}

json export_model(const ExportArguments& arguments) {
  const DType dtype = model_dtype("--dtype", arguments.dtype);
  MIRABELLE_CHECK_USAGE(arguments.max_file_gib > 0 && arguments.max_positions >= 0,
                        "--max-file-gib must be positive and --max-positions not negative, got ",
                        arguments.max_file_gib, " and ", arguments.max_positions);
  const StoredModel stored = open_checkpoint(arguments.checkpoint);
  const SemanticIds& ids = stored.tokenizer.ids;
  const std::string architecture = hugging_face_architecture(stored.model);
  AtomicPath target = new_folder(arguments.output);
  fs::create_directory(target.path());
  std::vector<int64_t> rows(ids.vocab_size());  // without padding
  for (int64_t i = 0; i < ids.vocab_size(); ++i) rows[i] = i;
  const RemappedVocabulary exported(*stored.source, rows, 0);
  const ParameterLayout layout(stored.model, ids.vocab_size());
  Progress progress("export");
  write_safetensors_files(target.path(), exported, layout.logical_tensors(), dtype,
                          static_cast<int64_t>(arguments.max_file_gib * (1 << 30)),
                          [&](int64_t done, int64_t total) { progress.update(done, total); });
  HuggingFaceConfig config{stored.model, ids.vocab_size(), stored.max_positions, {}};
  if (arguments.max_positions > 0) config.max_positions = arguments.max_positions;
  if (ids.num_levels() > 0) config.bos_token = ids.bos_token();
  write_text_file(target.path() / "config.json",
                  hugging_face_config(config, arguments.dtype).dump(2) + "\n");
  write_semantic_ids(target.path(), stored.tokenizer);
  exported.verify();
  target.commit();
  std::cout << arguments.output << ": " << architecture << ", "
            << format_count(layout.num_elements()) << " parameters in " << arguments.dtype << ", "
            << format_count(ids.vocab_size()) << " tokens, " << format_count(ids.num_items())
            << " items\n";
  return {{"output", arguments.output},   {"checkpoint", stored.path.string()},
          {"architecture", architecture}, {"parameters", layout.num_elements()},
          {"dtype", arguments.dtype},     {"vocab_size", ids.vocab_size()},
          {"items", ids.num_items()}};
}

struct ImportArguments {
  std::string model, output, tokenizer;
  uint64_t seed = 0;
};

void add_import_options(CLI::App& command, ImportArguments& to) {
  command.add_option("MODEL", to.model, "A folder of Hugging Face, or a checkpoint")->required();
  command.add_option("FOLDER", to.output, "The checkpoint to write; must not exist")->required();
  command
      .add_option("--tokenizer", to.tokenizer,
                  "A tokenizer's file, whose semantic IDs' tokens come behind those of the text; "
                  "their rows are drawn around the mean of the rows that are there")
      ->type_name("FILE");
  command.add_option("--seed", to.seed, "Of those rows")->capture_default_str();
}

/// The vocabulary to be written: the model's own, or its text before the tokenizer's IDs.
TokenizerFile imported_tokenizer(const StoredModel& stored, const std::string& file) {
  if (file.empty()) return stored.tokenizer;
  TokenizerFile tokenizer = read_tokenizer_file(file);
  const int64_t num_text = stored.tokenizer.ids.num_text_tokens();
  MIRABELLE_CHECK_DATA(
      tokenizer.ids.num_text_tokens() == 0 || tokenizer.ids.num_text_tokens() == num_text, file,
      ": made for a model of ", tokenizer.ids.num_text_tokens(), " text tokens, ",
      stored.path.string(), " has ", num_text);
  tokenizer.ids = tokenizer.ids.after_text(num_text);
  return tokenizer;
}

json import_model(const ImportArguments& arguments) {
  const StoredModel stored = open_model(arguments.model);
  const TokenizerFile tokenizer = imported_tokenizer(stored, arguments.tokenizer);
  AtomicPath target = new_folder(arguments.output);
  fs::create_directory(target.path());
  const auto rows =
      map_vocabulary(tokenizer.ids.token_ranges(), stored.tokenizer.ids.token_ranges());
  const RemappedVocabulary imported(*stored.source, rows, arguments.seed);
  const ParameterLayout layout(stored.model, tokenizer.ids.padded_vocab_size());
  Progress progress("import");
  const std::string file =
      write_checkpoint_file(target.path(), imported, layout.logical_tensors(),
                            [&](int64_t done, int64_t total) { progress.update(done, total); });
  progress.clear();
  write_tokenizer_file(target.path() / "tokenizer.h5", tokenizer);
  Config config;
  if (stored.is_checkpoint) config = config_from_yaml(stored.config_text, stored.path.string());
  config.model = stored.model;
  config.tokenizer.file = (fs::path(arguments.output) / "tokenizer.h5").string();
  TrainingState state;
  state.optimizer = "none";
  state.finished = true;
  complete_checkpoint(target.path(), state, {file}, to_yaml(config));
  imported.verify();
  target.commit();
  const auto num_new = std::count(rows.begin(), rows.end(), kNewRow);
  const int64_t parameters = num_parameters(stored.model, tokenizer.ids);
  std::cout << arguments.output << ": " << format_count(parameters) << " parameters, "
            << format_count(tokenizer.ids.vocab_size()) << " tokens (" << format_count(num_new)
            << " new), " << format_count(tokenizer.ids.num_items()) << " items\n";
  return {{"output", arguments.output}, {"model", stored.path.string()},
          {"parameters", parameters},   {"vocab_size", tokenizer.ids.vocab_size()},
          {"new_tokens", num_new},      {"items", tokenizer.ids.num_items()}};
}

std::string shape_text(const Shape& shape) {
  std::ostringstream text;
  text << shape;
  return text.str();
}

json inspect(const std::string& path) {
  const StoredModel stored = open_model(path);
  const int64_t parameters = num_parameters(stored.model, stored.tokenizer.ids);
  json tensors = json::array();
  Table table({"tensor", "shape", "dtype"});
  for (const auto& [name, tensor] : stored.source->tensors()) {
    table.add_row({name, shape_text(tensor.shape), tensor.dtype});
    json shape = json::array();
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
    tensors.push_back({{"name", name}, {"shape", shape}, {"dtype", tensor.dtype}});
  }
  stored.source->verify();
  json result = {{"path", stored.path.string()},
                 {"format", stored.is_checkpoint ? "checkpoint" : "hugging_face"},
                 {"parameters", parameters},
                 {"vocab_size", stored.tokenizer.ids.vocab_size()},
                 {"items", stored.tokenizer.ids.num_items()},
                 {"tensors", tensors},
                 {"config", stored.config_text}};
  std::cout << stored.path.string() << ": a "
            << (stored.is_checkpoint ? "checkpoint" : "model of Hugging Face") << ", "
            << format_count(parameters) << " parameters, "
            << format_count(stored.tokenizer.ids.vocab_size()) << " tokens, "
            << format_count(stored.tokenizer.ids.num_items()) << " items\n";
  if (stored.is_checkpoint) {
    const TrainingState state = read_training_state(stored.path);
    std::cout << "step " << format_count(state.step) << ", " << format_count(state.tokens)
              << " tokens trained on, optimizer state: " << state.optimizer << "\n";
    result["step"] = state.step;
    result["optimizer"] = state.optimizer;
  }
  std::cout << "\n";
  table.print(std::cout);
  std::cout << "\n" << stored.config_text;
  return result;
}

struct Difference {
  double largest = 0;
  int64_t num_different = 0, num_compared = 0;
};

/// Of the rows that both have. Two NaNs are the same, a NaN and a number differ infinitely.
Difference difference(const TensorSource& a, const TensorSource& b, const std::string& name) {
  Difference result;
  const int64_t num_rows = std::min(a.info(name).num_rows(), b.info(name).num_rows());
  const int64_t row_size = a.info(name).row_size();
  if (row_size == 0) return result;  // of a head that nobody uses; no other tensor may be empty
  std::vector<float> other;
  for_each_slab(a, name, [&](int64_t begin, std::span<const float> rows) {
    const int64_t count = std::clamp<int64_t>(num_rows - begin, 0, rows.size() / row_size);
    other.resize(count * row_size);
    b.read_rows(name, begin, other);
    for (size_t i = 0; i < other.size(); ++i) {
      if (rows[i] == other[i] || (std::isnan(rows[i]) && std::isnan(other[i]))) continue;
      const double distance = std::abs(static_cast<double>(rows[i]) - other[i]);
      result.largest = std::max(result.largest, std::isnan(distance) ? INFINITY : distance);
      ++result.num_different;
    }
    result.num_compared += static_cast<int64_t>(other.size());
  });
  return result;
}

struct DiffArguments {
  std::string a, b;
  double tolerance = -1;
};

void add_diff_options(CLI::App& command, DiffArguments& to) {
  command.add_option("A", to.a, "A checkpoint, a training output or a folder of Hugging Face")
      ->required();
  command.add_option("B", to.b, "The other one")->required();
  command.add_option("--tolerance", to.tolerance,
                     "Exit with 1 if an element differs by more, or a tensor is in one only; "
                     "without it differences are no failure");
}

std::pair<json, int> diff(const DiffArguments& arguments) {
  const StoredModel a = open_model(arguments.a), b = open_model(arguments.b);
  Table table({"tensor", "A", "B", "largest difference", "elements that differ"});
  json tensors = json::object();
  bool is_within = true, is_identical = true;
  std::map<std::string, int> names;
  for (const auto* source : {a.source.get(), b.source.get()}) {
    for (const auto& [name, tensor] : source->tensors()) ++names[name];
  }
  const auto shape_in = [](const StoredModel& model, const std::string& name) {
    const auto found = model.source->tensors().find(name);
    return found == model.source->tensors().end() ? "-" : shape_text(found->second.shape);
  };
  for (const auto& [name, count] : names) {
    const auto row_size = [&](const StoredModel& m) { return m.source->info(name).row_size(); };
    if (count < 2 || row_size(a) != row_size(b)) {
      is_within = is_identical = false;
      table.add_row({name, shape_in(a, name), shape_in(b, name), "-", "-"});
      tensors[name] = nullptr;
      continue;
    }
    const Difference found = difference(*a.source, *b.source, name);
    is_within &= found.largest <= arguments.tolerance;
    is_identical &= found.num_different == 0;
    std::ostringstream largest;
    largest << found.largest;
    table.add_row({name, shape_in(a, name), shape_in(b, name), largest.str(),
                   format_count(found.num_different) + " of " + format_count(found.num_compared)});
    tensors[name] = {{"largest_difference", found.largest},
                     {"different", found.num_different},
                     {"compared", found.num_compared}};
  }
  a.source->verify();
  b.source->verify();
  table.print(std::cout);
  std::cout << (is_identical ? "identical\n" : "different\n");
  const bool fails = arguments.tolerance >= 0 && !is_within;
  return {{{"a", a.path.string()},
           {"b", b.path.string()},
           {"identical", is_identical},
           {"tensors", tensors}},
          fails ? 1 : 0};
}

struct LogitsArguments {
  std::string model, output;
  std::vector<int32_t> tokens;
};

void add_logits_options(CLI::App& command, LogitsArguments& to) {
  command
      .add_option("MODEL", to.model, "A checkpoint, a training output or a folder of Hugging Face")
      ->required();
  command.add_option("FILE", to.output, "The .npy file to write")->required();
  command.add_option("--tokens", to.tokens, "The sequence, as numbers: 0,17,300")
      ->delimiter(',')
      ->required();
}

json logits(const LogitsArguments& arguments) {
  const StoredModel stored = open_model(arguments.model);
  const SemanticIds& ids = stored.tokenizer.ids;
  const auto num_tokens = static_cast<int64_t>(arguments.tokens.size());
  for (const int32_t token : arguments.tokens) {
    MIRABELLE_CHECK_USAGE(0 <= token && token < ids.vocab_size(), "--tokens: ", token,
                          " is not one of the ", ids.vocab_size(), " tokens");
  }
  Transformer model(stored.model, ids.vocab_size(), ids.padded_vocab_size(), DType::kFloat32,
                    {num_tokens, num_tokens, /*training=*/false});
  const auto ranges = ids.token_ranges();
  const RemappedVocabulary padded(*stored.source, map_vocabulary(ranges, ranges), 0);
  read_share(model.weights(), model.layout(), padded);
  padded.verify();
  std::vector<int32_t> positions(num_tokens);
  std::iota(positions.begin(), positions.end(), 0);
  const std::vector<int32_t> none(num_tokens, -1), sequences(num_tokens, 0);
  const std::vector<int32_t> offsets = {0, static_cast<int32_t>(num_tokens)};
  const TensorView hidden =
      model.forward({view_of(arguments.tokens), view_of(none), view_of(positions),
                     view_of(sequences), view_of(offsets)},
                    Stream());
  std::vector<float> values(num_tokens * ids.vocab_size());
  model.logits(view_of(values.data(), {num_tokens, ids.vocab_size()}), hidden, {}, Stream());
  write_npy(arguments.output, values.data(), num_tokens, ids.vocab_size());
  std::cout << arguments.output << ": logits of " << num_tokens << " x "
            << format_count(ids.vocab_size()) << " tokens\n";
  return {{"output", arguments.output}, {"model", stored.path.string()}, {"tokens", num_tokens}};
}

int run(int argc, char** argv, const Communicator& self) {
  CommandLine command_line("mirabelle-convert", kSummary, kExamples);
  CLI::App& app = command_line.app();
  ExportArguments to_export;
  ImportArguments to_import;
  DiffArguments to_compare;
  LogitsArguments to_compute;
  std::string to_inspect;
  CLI::App& export_command = *app.add_subcommand("export", kExportHelp);
  add_export_options(export_command, to_export);
  CLI::App& import_command = *app.add_subcommand("import", kImportHelp);
  add_import_options(import_command, to_import);
  CLI::App& inspect_command = *app.add_subcommand(
      "inspect", "Shows names, shapes and dtypes of a model's tensors and its configuration.");
  inspect_command
      .add_option("MODEL", to_inspect,
                  "A checkpoint, a training output or a folder of Hugging Face")
      ->required();
  CLI::App& diff_command = *app.add_subcommand("diff", kDiffHelp);
  add_diff_options(diff_command, to_compare);
  CLI::App& logits_command = *app.add_subcommand("logits", kLogitsHelp);
  add_logits_options(logits_command, to_compute);
  app.require_subcommand(0, 1);
  if (const auto status = command_line.parse(argc, argv, self)) return *status;
  MIRABELLE_CHECK_USAGE(
      !app.get_subcommands().empty(),
      "wanted export, import, inspect, diff or logits (see mirabelle-convert --help)");
  int exit_status = 0;
  json result;
  if (export_command.parsed()) {
    result = export_model(to_export);
  } else if (import_command.parsed()) {
    result = import_model(to_import);
  } else if (inspect_command.parsed()) {
    result = inspect(to_inspect);
  } else if (logits_command.parsed()) {
    result = logits(to_compute);
  } else {
    std::tie(result, exit_status) = diff(to_compare);
  }
  result["version"] = MIRABELLE_VERSION;
  command_line.write_result(result);
  return exit_status;
}

}  // namespace
}  // namespace mirabelle

int main(int argc, char** argv) {
  return mirabelle::run_serial_main("mirabelle-convert", [&](const mirabelle::Communicator& self) {
    return mirabelle::run(argc, argv, self);
  });
}
