#include "tensor_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "mirabelle/core/error.h"
#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/core/json.h"

namespace mirabelle {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// HDF5 serves one thread at a time: its calls are kept so short that others need not wait.
constexpr int64_t kSliceElements = 1 << 20;
constexpr const char* kIndex = "index";

struct Group {
  const char* name;
  TensorView CheckpointTensors::*values;
};
constexpr std::array<Group, 3> kGroups = {{{"weights/", &CheckpointTensors::weights},
                                           {"exp_avg/", &CheckpointTensors::exp_avg},
                                           {"exp_avg_sq/", &CheckpointTensors::exp_avg_sq}}};

FlatRange overlap(const FlatRange& a, const FlatRange& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

FlatRange rows_of(const LogicalPiece& piece) {
  return {piece.row_begin, piece.row_begin + piece.num_rows};
}
FlatRange columns_of(const LogicalPiece& piece) {
  return {piece.column_begin, piece.column_begin + piece.num_columns};
}
FlatRange rows_of(const Shape& shape) { return {0, shape[0]}; }
FlatRange columns_of(const Shape& shape) { return {0, shape.inner().num_elements()}; }

/// Elements of a piece. If it has all columns, they are seen as elements of the whole tensor, so
/// that neighbours are found.
TensorRegion region_of(const LogicalPiece& piece, const FlatRange& elements) {
  const FlatRange columns = columns_of(piece);
  if (columns != columns_of(piece.shape)) return {rows_of(piece), columns, elements};
  const int64_t begin = piece.row_begin * piece.num_columns;
  return {rows_of(piece.shape), columns, {begin + elements.begin, begin + elements.end}};
}

/// Neighbours become one region.
void append(std::vector<TensorRegion>& regions, const TensorRegion& next) {
  if (!regions.empty() && regions.back().rows == next.rows &&
      regions.back().columns == next.columns &&
      regions.back().elements.end == next.elements.begin) {
    regions.back().elements.end = next.elements.end;
  } else {
    regions.push_back(next);
  }
}

bool is_whole(const StoredTensor& tensor) {
  return tensor.regions.size() == 1 && tensor.regions[0].rows == rows_of(tensor.shape) &&
         tensor.regions[0].columns == columns_of(tensor.shape) &&
         tensor.regions[0].elements == FlatRange{0, tensor.shape.num_elements()};
}

Shape dataset_shape(const StoredTensor& tensor) {
  if (is_whole(tensor)) return tensor.shape;
  int64_t elements = 0;
  for (const TensorRegion& region : tensor.regions) elements += region.elements.size();
  return {elements};
}

/// The elements of one step of reading or writing: whole rows of the dataset.
int64_t slice_elements(const Shape& dataset) {
  const int64_t row = dataset.inner().num_elements();
  return std::max<int64_t>(1, kSliceElements / row) * row;
}

/// `count` elements as rows of a dataset.
TensorView as_rows(const float* values, int64_t count, const Shape& dataset) {
  return view_of(values, dataset.with_outer(count / dataset.inner().num_elements()));
}

void write_tensor(Hdf5File& file, const std::string& name, const OwnedTensor& tensor,
                  const float* values) {
  const Shape dataset = dataset_shape(tensor.stored);
  file.create_dataset(name, dataset, DType::kFloat32);
  const int64_t capacity = slice_elements(dataset), row = dataset.inner().num_elements();
  std::vector<float> slice;
  int64_t num_written = 0;
  const auto flush = [&] {
    const auto count = static_cast<int64_t>(slice.size());
    file.write_rows(name, num_written / row, as_rows(slice.data(), count, dataset));
    num_written += count;
    slice.clear();
  };
  for (FlatRange rest : tensor.sources) {
    while (rest.size() > 0) {
      const int64_t space = capacity - static_cast<int64_t>(slice.size());
      const int64_t end = std::min(rest.begin + space, rest.end);
      slice.insert(slice.end(), values + rest.begin, values + end);
      rest.begin = end;
      if (static_cast<int64_t>(slice.size()) == capacity) flush();
    }
  }
  flush();
}

json to_json(const StoredTensor& tensor) {
  json shape = json::array(), regions = json::array();
  for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
  for (const auto& [rows, columns, elements] : tensor.regions) {
    regions.push_back(
        {rows.begin, rows.end, columns.begin, columns.end, elements.begin, elements.end});
  }
  return {{"shape", shape}, {"regions", regions}};
}

bool is_inside(const FlatRange& range, const FlatRange& outer) {
  return outer.begin <= range.begin && range.begin < range.end && range.end <= outer.end;
}

/// One or two axes of at least one element each; the product fits in 62 bits.
Shape shape_from_json(const json& stored, const std::string& where) {
  const auto extents = json_field<std::vector<int64_t>>(stored, "shape", where);
  MIRABELLE_CHECK_DATA(extents.size() == 1 || extents.size() == 2, where, " has ", extents.size(),
                       " axes, wanted 1 or 2");
  int64_t room = INT64_MAX / 2;
  for (const int64_t extent : extents) {
    MIRABELLE_CHECK_DATA(0 < extent && extent <= room, where, " has the shape ",
                         shown(stored["shape"]), ", which no tensor has");
    room /= extent;
  }
  return extents.size() == 1 ? Shape{extents[0]} : Shape{extents[0], extents[1]};
}

TensorRegion region_from_json(const json& region, const Shape& shape, const std::string& where) {
  const auto bounds = json_value<std::vector<int64_t>>(region, where + ": a region");
  MIRABELLE_CHECK_DATA(bounds.size() == 6, where, ": a region is ", shown(region),
                       ", wanted 6 bounds");
  const TensorRegion found{{bounds[0], bounds[1]}, {bounds[2], bounds[3]}, {bounds[4], bounds[5]}};
  MIRABELLE_CHECK_DATA(is_inside(found.rows, rows_of(shape)) &&
                           is_inside(found.columns, columns_of(shape)) &&
                           is_inside(found.elements, {0, found.rows.size() * found.columns.size()}),
                       where, " of shape ", shape, " has no region ", shown(region));
  return found;
}

StoredTensor stored_from_json(const std::string& name, const json& stored,
                              const std::string& where) {
  StoredTensor tensor{name, shape_from_json(stored, where), {}};
  int64_t room = tensor.shape.num_elements();  // a file holds no element twice
  for (const json& region : json_field<std::vector<json>>(stored, "regions", where)) {
    tensor.regions.push_back(region_from_json(region, tensor.shape, where));
    const int64_t elements = tensor.regions.back().elements.size();
    MIRABELLE_CHECK_DATA(elements <= room, where, ": the regions hold more than the ",
                         tensor.shape.num_elements(), " elements of the tensor");
    room -= elements;
  }
  return tensor;
}

/// A rank's pieces of a logical tensor, and how many of their elements each group has got.
struct WantedTensor {
  Shape shape;
  std::vector<LogicalPiece> pieces;
  std::array<int64_t, kGroups.size()> num_found{};
};

bool meet(const TensorRegion& region, const LogicalPiece& piece) {
  const int64_t width = region.columns.size();
  const FlatRange rows = {region.rows.begin + region.elements.begin / width,
                          region.rows.begin + (region.elements.end - 1) / width + 1};
  return overlap(rows, rows_of(piece)).size() > 0 &&
         overlap(region.columns, columns_of(piece)).size() > 0;
}

/// The smallest range of rows that holds all pieces.
FlatRange rows_of(std::span<const LogicalPiece> pieces) {
  FlatRange rows = rows_of(pieces.front());
  for (const LogicalPiece& piece : pieces) {
    rows.begin = std::min(rows.begin, piece.row_begin);
    rows.end = std::max(rows.end, piece.row_begin + piece.num_rows);
  }
  return rows;
}

/// Of a region's elements those in these rows of the tensor.
FlatRange elements_of_rows(const TensorRegion& region, const FlatRange& rows) {
  const int64_t width = region.columns.size();
  const FlatRange inside = overlap(rows, region.rows);
  return overlap(region.elements, {(inside.begin - region.rows.begin) * width,
                                   (inside.end - region.rows.begin) * width});
}

/// Copies what of the region belongs to the piece; returns how many elements that were.
int64_t scatter(const TensorRegion& region, const float* values, const LogicalPiece& piece,
                float* flat) {
  const int64_t width = region.columns.size();
  int64_t num_copied = 0;
  for (int64_t i = region.elements.begin / width; i * width < region.elements.end; ++i) {
    const int64_t row = region.rows.begin + i;
    if (row < piece.row_begin) continue;
    if (row >= piece.row_begin + piece.num_rows) break;
    // the elements of this row, then the columns that they and the piece have in common
    const FlatRange in_row = overlap({i * width, (i + 1) * width}, region.elements);
    const int64_t to_column = region.columns.begin - i * width;
    const FlatRange columns =
        overlap({in_row.begin + to_column, in_row.end + to_column}, columns_of(piece));
    const float* from = values + columns.begin - to_column - region.elements.begin;
    std::copy_n(from, columns.size(),
                flat + piece.offset + (row - piece.row_begin) * piece.num_columns + columns.begin -
                    piece.column_begin);
    num_copied += columns.size();
  }
  return num_copied;
}

void read_tensor_file(const fs::path& path, const CheckpointTensors& tensors,
                      std::map<std::string, WantedTensor>& wanted, std::set<std::string>& names) {
  const Hdf5File file = Hdf5File::open(path);
  for (const StoredTensor& stored : read_index(file)) {
    names.insert(stored.name);
    const auto found = wanted.find(stored.name);
    if (found == wanted.end()) continue;
    auto& [shape, pieces, num_found] = found->second;
    MIRABELLE_CHECK_DATA(stored.shape == shape, path.string(), ": ", stored.name, " is ",
                         stored.shape, ", the configuration wants ", shape);
    for (size_t i = 0; i < kGroups.size(); ++i) {
      const TensorView& flat = tensors.*kGroups[i].values;
      if (!flat) continue;
      num_found[i] +=
          read_pieces(file, kGroups[i].name + stored.name, stored, pieces, flat.as<float>());
    }
  }
}

void check_found(const fs::path& folder, const std::string& name, const WantedTensor& tensor,
                 const CheckpointTensors& tensors) {
  int64_t num_wanted = 0;
  for (const LogicalPiece& piece : tensor.pieces) num_wanted += piece.num_elements();
  for (size_t i = 0; i < kGroups.size(); ++i) {
    MIRABELLE_CHECK_DATA(!(tensors.*kGroups[i].values) || tensor.num_found[i] == num_wanted,
                         folder.string(), ": of ", kGroups[i].name, name, " there are ",
                         tensor.num_found[i], " elements, wanted ", num_wanted);
  }
}

/// What of a logical tensor's pieces is primary and in the owned ranges.
OwnedTensor owned_tensor(std::span<const LogicalPiece> pieces, std::span<const FlatRange> owned) {
  struct Part {
    TensorRegion region;
    FlatRange source;
  };
  std::vector<Part> parts;
  for (const LogicalPiece& piece : pieces) {
    int64_t range_begin = 0;  // in the memory of the owned ranges
    for (const FlatRange& range : owned) {
      const FlatRange mine = overlap(range, {piece.offset, piece.offset + piece.num_elements()});
      if (piece.is_primary && mine.size() > 0) {
        const int64_t source = range_begin + mine.begin - range.begin;
        parts.push_back({region_of(piece, {mine.begin - piece.offset, mine.end - piece.offset}),
                         {source, source + mine.size()}});
      }
      range_begin += range.size();
    }
  }
  const auto place = [](const Part& part) {
    return std::tuple(part.region.columns.begin, part.region.rows.begin,
                      part.region.elements.begin);
  };
  std::sort(parts.begin(), parts.end(),
            [&](const Part& a, const Part& b) { return place(a) < place(b); });
  OwnedTensor tensor{{pieces.front().name, pieces.front().shape, {}}, {}};
  for (const auto& [region, source] : parts) {
    append(tensor.stored.regions, region);
    tensor.sources.push_back(source);
  }
  return tensor;
}

}  // namespace

StoredTensor whole_tensor(const LogicalTensor& tensor) {
  const TensorRegion all = {
      rows_of(tensor.shape), columns_of(tensor.shape), {0, tensor.shape.num_elements()}};
  return {tensor.name, tensor.shape, {all}};
}

std::string weights_dataset(const std::string& name) { return kGroups[0].name + name; }

void write_index(Hdf5File& file, const std::vector<StoredTensor>& tensors) {
  json index = json::object();
  for (const StoredTensor& tensor : tensors) index[tensor.name] = to_json(tensor);
  file.write_text(kIndex, index.dump());
}

std::vector<StoredTensor> parse_tensor_index(std::string_view text, const std::string& where) {
  const json index = parse_json(text, where);
  MIRABELLE_CHECK_DATA(index.is_object(), where, ": is ", shown(index),
                       ", wanted an object of tensors");
  std::vector<StoredTensor> tensors;
  for (const auto& [name, stored] : index.items()) {
    tensors.push_back(stored_from_json(name, stored, where + ": " + name));
  }
  return tensors;
}

std::vector<StoredTensor> read_index(const Hdf5File& file) {
  return parse_tensor_index(file.read_text(kIndex), file.path().string() + ": dataset " + kIndex);
}

int64_t read_pieces(const Hdf5File& file, const std::string& name, const StoredTensor& tensor,
                    std::span<const LogicalPiece> pieces, float* flat) {
  const Shape dataset = dataset_shape(tensor);
  const int64_t step = slice_elements(dataset), row = dataset.inner().num_elements();
  std::vector<float> values;
  int64_t num_found = 0, region_begin = 0;
  for (TensorRegion slice : tensor.regions) {
    const auto [begin, end] = slice.elements;
    const FlatRange wanted = elements_of_rows(slice, rows_of(pieces));
    for (slice.elements.begin = wanted.begin; slice.elements.begin < wanted.end;
         slice.elements.begin += step) {
      slice.elements.end = std::min(slice.elements.begin + step, wanted.end);
      const auto is_wanted = [&](const LogicalPiece& piece) { return meet(slice, piece); };
      if (std::none_of(pieces.begin(), pieces.end(), is_wanted)) continue;
      values.resize(slice.elements.size());
      file.read_rows(name, (region_begin + slice.elements.begin - begin) / row,
                     as_rows(values.data(), slice.elements.size(), dataset));
      for (const LogicalPiece& piece : pieces) {
        num_found += scatter(slice, values.data(), piece, flat);
      }
    }
    region_begin += end - begin;
  }
  return num_found;
}

std::vector<OwnedTensor> owned_tensors(const ParameterLayout& layout,
                                       std::span<const FlatRange> owned) {
  std::vector<OwnedTensor> tensors;
  const std::vector<LogicalPiece> all_pieces = layout.pieces();
  for (size_t begin = 0, end; begin < all_pieces.size(); begin = end) {
    end = begin;
    while (end < all_pieces.size() && all_pieces[end].name == all_pieces[begin].name) ++end;
    const auto pieces = std::span(all_pieces).subspan(begin, end - begin);
    const OwnedTensor tensor = owned_tensor(pieces, owned);
    if (!tensor.sources.empty()) tensors.push_back(tensor);
  }
  return tensors;
}

std::string find_not_finite(const std::vector<OwnedTensor>& tensors,
                            const CheckpointTensors& values) {
  const auto is_finite = [](float value) { return std::isfinite(value); };
  for (const Group& group : kGroups) {
    const float* const all = (values.*group.values).as<float>();
    for (const OwnedTensor& tensor : tensors) {
      for (const FlatRange& part : tensor.sources) {
        if (!std::all_of(all + part.begin, all + part.end, is_finite)) {
          return group.name + tensor.stored.name;
        }
      }
    }
  }
  return "";
}

void write_tensor_file(const fs::path& path, const std::vector<OwnedTensor>& tensors,
                       const CheckpointTensors& values) {
  Hdf5File file = Hdf5File::create(path);
  std::vector<StoredTensor> stored;
  for (const OwnedTensor& tensor : tensors) {
    stored.push_back(tensor.stored);
    for (const Group& group : kGroups) {
      write_tensor(file, group.name + tensor.stored.name, tensor,
                   (values.*group.values).as<float>());
    }
  }
  write_index(file, stored);
  file.close();
}

void read_tensor_files(const fs::path& folder, const std::vector<std::string>& files,
                       const ParameterLayout& layout, const CheckpointTensors& tensors) {
  std::map<std::string, WantedTensor> wanted;
  for (const LogicalPiece& piece : layout.pieces()) {
    WantedTensor& tensor = wanted[piece.name];
    tensor.shape = piece.shape;
    tensor.pieces.push_back(piece);
  }
  std::set<std::string> names;
  for (const std::string& file : files) read_tensor_file(folder / file, tensors, wanted, names);
  for (const auto& [name, tensor] : wanted) check_found(folder, name, tensor, tensors);
  MIRABELLE_CHECK_DATA(names.size() == wanted.size(), folder.string(), ": holds ", names.size(),
                       " tensors, the configuration wants ", wanted.size());
}

}  // namespace mirabelle
