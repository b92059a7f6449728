#include "mirabelle/tokenizer/tokenizer_file.h"

#include <algorithm>
#include <cmath>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/tokenizer/collisions.h"
#include "mirabelle/tokenizer/rq_vae.h"

namespace mirabelle {
namespace {

constexpr const char* kMagic = "mirabelle tokenizer";
constexpr int64_t kSchemaVersion = 2;
constexpr int64_t kMaxSize = 1 << 24;  // of a layer or a feature: products do not overflow

template <typename T>
void write_vector(Hdf5File& file, const std::string& name, const std::vector<T>& values) {
  file.write(name, view_of(values.data(), {static_cast<int64_t>(values.size())}));
}

std::string codebook_name(int64_t level) { return "codebooks/level_" + std::to_string(level); }

void write_table(Hdf5File& file, const TokenizerFile& tokenizer) {
  const SemanticIds& ids = tokenizer.ids;
  std::vector<int32_t> priorities;
  std::vector<int64_t> level_sizes;
  for (int64_t item = 0; item < ids.num_items(); ++item) priorities.push_back(ids.priority(item));
  for (int64_t level = 0; level < ids.num_levels(); ++level) {
    level_sizes.push_back(ids.level_size(level));
  }
  const auto codes = ids.all_codes().codes;
  file.write("table/codes", view_of(codes.data(), {ids.num_items(), ids.num_levels()}));
  write_vector(file, "table/priority", priorities);
  write_vector(file, "table/level_sizes", level_sizes);
  file.write_strings("table/item_ids", tokenizer.item_ids);
}

void write_vocabulary(Hdf5File& file, const SemanticIds& ids) {
  std::vector<std::string> names;
  std::vector<int64_t> begins, sizes;
  for (const TokenRange& range : ids.token_ranges()) {
    names.push_back(range.name);
    begins.push_back(range.begin);
    sizes.push_back(range.size);
  }
  file.write_strings("vocabulary/names", names);
  write_vector(file, "vocabulary/begin", begins);
  write_vector(file, "vocabulary/size", sizes);
}

/// Everything but the codebooks.
void write_rq_vae(Hdf5File& file, const RqVae& model) {
  const RqVaeConfig& config = model.config();
  const bool has_head = !model.tensors().head.empty();
  write_vector(file, "rq_vae/hidden_sizes", config.hidden_sizes);
  write_vector(file, "rq_vae/sizes",
               std::vector<int64_t>{config.source_size, config.codebook_dim,
                                    has_head ? config.contrastive_size : 0});
  for (const RqVaeLayout::Tensor& tensor : model.layout().tensors()) {
    if (tensor.offset >= model.layout().codebooks_begin()) continue;
    const float* values = model.weights().as<float>() + tensor.offset;
    file.write("rq_vae/" + tensor.name, view_of(values, tensor.shape));
  }
}

void write_quantizer(Hdf5File& file, const ResidualQuantizer& quantizer) {
  const FeatureNormalization& normalization = quantizer.normalization;
  std::vector<std::string> names;
  std::vector<int64_t> dims;
  std::vector<double> weights;
  for (const FeatureSource& source : normalization.sources) {
    names.push_back(source.name);
    dims.push_back(source.dim);
    weights.push_back(source.weight);
  }
  file.write_strings("features/names", names);
  write_vector(file, "features/dims", dims);
  write_vector(file, "features/weights", weights);
  write_vector(file, "features/means", normalization.means);
  write_vector(file, "features/deviations", normalization.deviations);
  for (int64_t level = 0; level < quantizer.num_levels(); ++level) {
    const auto& codebook = quantizer.codebooks[level];
    file.write(codebook_name(level), view_of(codebook.rows.data(), {codebook.size, codebook.dim}));
  }
  if (quantizer.rq_vae) write_rq_vae(file, *quantizer.rq_vae);
}

int64_t version_of(const Hdf5File& file) { return file.read<int64_t>("schema_version").at(0); }

Hdf5File open_checked(const std::filesystem::path& path) {
  Hdf5File file = Hdf5File::open(path);
  MIRABELLE_CHECK_DATA(file.contains("magic") && file.read_text("magic") == kMagic, path.string(),
                       ": not a tokenizer's file (its `magic` is not \"", kMagic, "\")");
  const auto version = file.read<int64_t>("schema_version");
  MIRABELLE_CHECK_DATA(version.size() == 1 && 1 <= version[0] && version[0] <= kSchemaVersion,
                       path.string(), ": schema version ", version.empty() ? -1 : version[0],
                       ", this program reads 1 to ", kSchemaVersion);
  return file;
}

/// The size of the first range, if that is the text's.
int64_t num_text_tokens(const Hdf5File& file) {
  const auto names = file.read_strings("vocabulary/names");
  const auto sizes = file.read<int64_t>("vocabulary/size");
  return !names.empty() && !sizes.empty() && names[0] == "text" ? sizes[0] : 0;
}

SemanticIds read_table(const Hdf5File& file) {
  const auto level_sizes = file.read<int64_t>("table/level_sizes");
  const Shape shape = file.shape("table/codes");
  MIRABELLE_CHECK_DATA(shape.rank() == 2 && shape[1] == static_cast<int64_t>(level_sizes.size()),
                       file.path().string(), ": dataset table/codes has shape ", shape,
                       ", wanted [num_items, ", level_sizes.size(), "]");
  const bool has_priorities = version_of(file) >= 2;
  const auto priorities =
      has_priorities ? file.read<int32_t>("table/priority") : std::vector<int32_t>{};
  MIRABELLE_CHECK_DATA(!has_priorities || static_cast<int64_t>(priorities.size()) == shape[0],
                       file.path().string(), ": dataset table/priority has ", priorities.size(),
                       " elements, wanted one for each of ", shape[0], " items");
  try {
    const SemanticIds ids =
        level_sizes.empty()
            ? SemanticIds()
            : SemanticIds(level_sizes, file.read<int32_t>("table/codes"), priorities);
    return ids.after_text(num_text_tokens(file));
  } catch (const Error& error) {
    throw_error(ErrorKind::kData, file.path().string(), ": ", error.what());
  }
}

void check_vocabulary(const Hdf5File& file, const SemanticIds& ids) {
  const auto names = file.read_strings("vocabulary/names");
  const auto begins = file.read<int64_t>("vocabulary/begin");
  const auto sizes = file.read<int64_t>("vocabulary/size");
  const auto expected = ids.token_ranges();
  bool same = names.size() == expected.size() && begins.size() == expected.size() &&
              sizes.size() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) {
    same = names[i] == expected[i].name && begins[i] == expected[i].begin &&
           sizes[i] == expected[i].size;
  }
  MIRABELLE_CHECK_DATA(same, file.path().string(),
                       ": the vocabulary's ranges do not follow from the level sizes of the table");
}

void check_finite(const Hdf5File& file, const std::string& name, const auto& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    MIRABELLE_CHECK_DATA(std::isfinite(values[i]), file.path().string(), ": dataset ", name,
                         " holds ", values[i], " at ", i, ", wanted finite numbers");
  }
}

FeatureNormalization read_normalization(const Hdf5File& file) {
  FeatureNormalization normalization;
  const auto names = file.read_strings("features/names");
  const auto dims = file.read<int64_t>("features/dims");
  const auto weights = file.read<double>("features/weights");
  MIRABELLE_CHECK_DATA(names.size() == dims.size() && names.size() == weights.size(),
                       file.path().string(), ": ", names.size(), " feature names, ", dims.size(),
                       " dims and ", weights.size(), " weights, wanted as many of each");
  for (size_t i = 0; i < names.size(); ++i) {
    MIRABELLE_CHECK_DATA(0 < dims[i] && dims[i] <= kMaxSize, file.path().string(),
                         ": feature source ", names[i], " has dim ", dims[i], ", wanted 1 to ",
                         kMaxSize);
    MIRABELLE_CHECK_DATA(weights[i] > 0 && std::isfinite(weights[i]), file.path().string(),
                         ": feature source ", names[i], " has weight ", weights[i],
                         ", wanted a positive number");
    normalization.sources.push_back({names[i], dims[i], weights[i]});
  }
  normalization.means = file.read<double>("features/means");
  normalization.deviations = file.read<double>("features/deviations");
  const size_t dim = normalization.feature_dim();
  MIRABELLE_CHECK_DATA(normalization.means.size() == dim && normalization.deviations.size() == dim,
                       file.path().string(), ": ", normalization.means.size(), " means and ",
                       normalization.deviations.size(), " deviations, wanted ", dim, " of each");
  check_finite(file, "features/means", normalization.means);
  check_finite(file, "features/deviations", normalization.deviations);
  return normalization;
}

/// What the shapes follow from; the rest is of training.
RqVaeConfig read_rq_vae_config(const Hdf5File& file) {
  const auto sizes = file.read<int64_t>("rq_vae/sizes");
  MIRABELLE_CHECK_DATA(sizes.size() == 3, file.path().string(), ": dataset rq_vae/sizes has ",
                       sizes.size(), " elements, wanted 3");
  RqVaeConfig config;
  config.hidden_sizes = file.read<int64_t>("rq_vae/hidden_sizes");
  config.source_size = sizes[0];
  config.codebook_dim = sizes[1];
  config.contrastive_weight = sizes[2] > 0 ? 1 : 0;
  if (sizes[2] > 0) config.contrastive_size = sizes[2];
  const auto is_size = [](int64_t n) { return 0 < n && n <= kMaxSize; };
  MIRABELLE_CHECK_DATA(is_size(sizes[0]) && is_size(sizes[1]) &&
                           (sizes[2] == 0 || is_size(sizes[2])) &&
                           std::ranges::all_of(config.hidden_sizes, is_size),
                       file.path().string(), ": the sizes of the RQ-VAE must be 1 to ", kMaxSize);
  return config;
}

/// The codebooks' rows are those of `quantizer`.
std::shared_ptr<const RqVae> read_rq_vae(const Hdf5File& file, const ResidualQuantizer& quantizer) {
  const RqVaeConfig config = read_rq_vae_config(file);
  std::vector<int64_t> levels;
  for (const Codebook& codebook : quantizer.codebooks) levels.push_back(codebook.size);
  // Shapes are compared before weights are allocated, so that no size asks for more memory than the
  // file has.
  const std::vector<FeatureSource>& sources = quantizer.normalization.sources;
  const RqVaeLayout layout(sources, levels, config);
  const auto is_codebook = [&](const RqVaeLayout::Tensor& tensor) {
    return tensor.offset >= layout.codebooks_begin();
  };
  for (const RqVaeLayout::Tensor& tensor : layout.tensors()) {
    const std::string name = "rq_vae/" + tensor.name;
    MIRABELLE_CHECK_DATA(
        is_codebook(tensor) || (file.contains(name) && file.shape(name) == tensor.shape),
        file.path().string(), ": wanted a dataset ", name, " of shape ", tensor.shape);
  }
  const auto model = std::make_shared<RqVae>(sources, levels, config, Device::kCpu);
  for (const RqVaeLayout::Tensor& tensor : layout.tensors()) {
    if (is_codebook(tensor)) continue;
    const std::vector<float> values = file.read<float>("rq_vae/" + tensor.name);
    check_finite(file, "rq_vae/" + tensor.name, values);
    std::ranges::copy(values, model->weights().as<float>() + tensor.offset);
  }
  for (size_t level = 0; level < levels.size(); ++level) {
    std::ranges::copy(quantizer.codebooks[level].rows,
                      model->tensors().codebooks[level].as<float>());
  }
  return model;
}

/// A codebook may have fewer rows than its level has codes: where there are fewer items.
void check_codes(const Hdf5File& file, const SemanticIds& ids, const ResidualQuantizer& quantizer) {
  for (int64_t item = 0; item < ids.num_items(); ++item) {
    for (int64_t level = 0; level < quantizer.num_levels(); ++level) {
      const int64_t code = ids.codes(item)[level], size = quantizer.codebooks[level].size;
      MIRABELLE_CHECK_DATA(code < size, file.path().string(), ": item ", item, " has code ", code,
                           " at level ", level, ", whose codebook has ", size, " rows");
    }
  }
}

ResidualQuantizer read_quantizer(const Hdf5File& file, const SemanticIds& ids,
                                 const std::string& collisions, bool has_rq_vae) {
  ResidualQuantizer quantizer;
  quantizer.normalization = read_normalization(file);
  const int64_t dim =
      has_rq_vae ? read_rq_vae_config(file).codebook_dim : quantizer.normalization.feature_dim();
  for (int64_t level = 0; file.contains(codebook_name(level)); ++level) {
    const Shape shape = file.shape(codebook_name(level));
    MIRABELLE_CHECK_DATA(level < ids.num_levels() && shape.rank() == 2 && shape[1] == dim &&
                             0 < shape[0] && shape[0] <= ids.level_size(level),
                         file.path().string(), ": dataset ", codebook_name(level), " has shape ",
                         shape, ", wanted a level's codebook of row size ", dim);
    quantizer.codebooks.push_back({shape[0], dim, file.read<float>(codebook_name(level))});
    check_finite(file, codebook_name(level), quantizer.codebooks.back().rows);
  }
  const int64_t num_without = ids.num_levels() - quantizer.num_levels();
  MIRABELLE_CHECK_DATA(
      num_without == 1 || (num_without == 0 && collisions != "disambiguation_code"),
      file.path().string(), ": ", quantizer.num_levels(), " codebooks for ", ids.num_levels(),
      " levels, wanted one for each but the disambiguation code");
  check_codes(file, ids, quantizer);
  if (has_rq_vae) quantizer.rq_vae = read_rq_vae(file, quantizer);
  return quantizer;
}

}  // namespace

int64_t num_code_levels(const TokenizerFile& tokenizer) {
  return tokenizer.kind == "item_id" ? tokenizer.ids.num_levels()
                                     : tokenizer.quantizer.num_levels();
}

void write_tokenizer_file(const std::filesystem::path& path, const TokenizerFile& tokenizer) {
  MIRABELLE_CHECK(static_cast<int64_t>(tokenizer.item_ids.size()) == tokenizer.ids.num_items(),
                  tokenizer.item_ids.size(), " item IDs for ", tokenizer.ids.num_items(), " items");
  AtomicPath target(path);
  Hdf5File file = Hdf5File::create(target.path());
  file.write_text("magic", kMagic);
  write_vector(file, "schema_version", std::vector{kSchemaVersion});
  file.write_text("kind", tokenizer.kind);
  file.write_text("collisions", tokenizer.collisions);
  file.write_text("dataset", tokenizer.dataset);
  file.write_text("split_hash", tokenizer.split_hash);
  file.write_text("config", tokenizer.config);
  file.write_text("report", tokenizer.report);
  write_table(file, tokenizer);
  write_vocabulary(file, tokenizer.ids);
  if (tokenizer.quantizer.num_levels() > 0) write_quantizer(file, tokenizer.quantizer);
  file.close();
  target.commit();
}

TokenizerFile read_tokenizer_file(const std::filesystem::path& path) {
  const Hdf5File file = open_checked(path);
  TokenizerFile tokenizer;
  tokenizer.kind = file.read_text("kind");
  MIRABELLE_CHECK_DATA(tokenizer.kind == "residual_kmeans" || tokenizer.kind == "rq_vae" ||
                           tokenizer.kind == "item_id" || tokenizer.kind == "text",
                       path.string(), ": a tokenizer of kind \"", tokenizer.kind,
                       "\", wanted residual_kmeans, rq_vae, item_id or text");
  if (version_of(file) >= 2) tokenizer.collisions = file.read_text("collisions");
  MIRABELLE_CHECK_DATA(is_collision_rule(tokenizer.collisions), path.string(),
                       ": a tokenizer with the unknown rule \"", tokenizer.collisions,
                       "\" for collisions");
  tokenizer.dataset = file.read_text("dataset");
  tokenizer.split_hash = file.read_text("split_hash");
  tokenizer.config = file.read_text("config");
  tokenizer.report = file.read_text("report");
  tokenizer.ids = read_table(file);
  check_vocabulary(file, tokenizer.ids);
  tokenizer.item_ids = file.read_strings("table/item_ids");
  MIRABELLE_CHECK_DATA(static_cast<int64_t>(tokenizer.item_ids.size()) == tokenizer.ids.num_items(),
                       path.string(), ": ", tokenizer.item_ids.size(), " item IDs for ",
                       tokenizer.ids.num_items(), " rows of codes");
  if (tokenizer.kind == "residual_kmeans" || tokenizer.kind == "rq_vae") {
    tokenizer.quantizer =
        read_quantizer(file, tokenizer.ids, tokenizer.collisions, tokenizer.kind == "rq_vae");
  }
  return tokenizer;
}

SemanticIds read_semantic_ids(const std::filesystem::path& path) {
  const Hdf5File file = open_checked(path);
  SemanticIds ids = read_table(file);
  check_vocabulary(file, ids);
  return ids;
}

std::vector<std::string> read_item_ids(const std::filesystem::path& path) {
  return open_checked(path).read_strings("table/item_ids");
}

void check_items(const std::vector<std::string>& item_ids, const Corpus& corpus,
                 const std::string& owner) {
  const auto num_items = static_cast<int64_t>(item_ids.size());
  MIRABELLE_CHECK_DATA(num_items == corpus.num_items(), owner, " knows ", num_items, " items, ",
                       corpus.folder().string(), " has ", corpus.num_items());
  for (int64_t item = 0; item < num_items; ++item) {
    const std::string id = id_text(corpus.item_id(item));
    MIRABELLE_CHECK_DATA(item_ids[item] == id, "item ", item, " is ", item_ids[item], " in ", owner,
                         " and ", id, " in ", corpus.folder().string());
  }
}

}  // namespace mirabelle
