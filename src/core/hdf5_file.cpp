#include "mirabelle/core/hdf5_file.h"

#include <algorithm>

namespace mirabelle {
namespace {

void close_dataset(hid_t id) { H5Dclose(id); }
void close_space(hid_t id) { H5Sclose(id); }
void close_type(hid_t id) { H5Tclose(id); }
void close_properties(hid_t id) { H5Pclose(id); }
void close_group(hid_t id) { H5Gclose(id); }
using Dataset = UniqueHandle<hid_t, close_dataset, hid_t{-1}>;
using Space = UniqueHandle<hid_t, close_space, hid_t{-1}>;
using Type = UniqueHandle<hid_t, close_type, hid_t{-1}>;
using Properties = UniqueHandle<hid_t, close_properties, hid_t{-1}>;
using Group = UniqueHandle<hid_t, close_group, hid_t{-1}>;

hid_t native_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return H5T_NATIVE_FLOAT;
    case DType::kFloat64:
      return H5T_NATIVE_DOUBLE;
    case DType::kInt32:
      return H5T_NATIVE_INT32;
    case DType::kInt64:
      return H5T_NATIVE_INT64;
    case DType::kUint8:
      return H5T_NATIVE_UINT8;
    case DType::kBFloat16:
      break;  // files hold what other tools can read
  }
  throw_error(ErrorKind::kOther, "no HDF5 type for ", to_string(dtype));
}

std::vector<hsize_t> extents_of(const Shape& shape) {
  std::vector<hsize_t> extents;
  for (int axis = 0; axis < shape.rank(); ++axis) extents.push_back(shape[axis]);
  return extents;
}

Properties intermediate_groups() {
  Properties properties(H5Pcreate(H5P_LINK_CREATE));
  H5Pset_create_intermediate_group(properties.get(), 1);
  return properties;
}

/// Without the time of writing, so that equal contents are equal files.
Properties dataset_properties() {
  Properties properties(H5Pcreate(H5P_DATASET_CREATE));
  H5Pset_obj_track_times(properties.get(), false);
  return properties;
}

/// A dataset's rows [begin, begin + rows.shape[0]).
Space select_rows(hid_t dataset, int64_t begin, const TensorView& rows) {
  Space selection(H5Dget_space(dataset));
  const std::vector<hsize_t> count = extents_of(rows.shape);
  std::vector<hsize_t> start(count.size(), 0);
  start[0] = static_cast<hsize_t>(begin);
  H5Sselect_hyperslab(selection.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(),
                      nullptr);
  return selection;
}

Space whole_space(const Shape& shape) {
  const std::vector<hsize_t> extents = extents_of(shape);
  return Space(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr));
}

/// HDF5 prints its error stack by default; we say one line instead. Nor shall it tidy up when the
/// program ends: we close every file ourselves, and one that a full disk did not let us close would
/// crash it there.
void prepare_library() {
  [[maybe_unused]] static const herr_t once = H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

}  // namespace

void Hdf5File::fail(const std::string& name, const std::string& what) const {
  throw_error(ErrorKind::kData, path_.string(), name.empty() ? "" : ": dataset ", name, ": ", what);
}

/// HDF5 buffers: some of a dataset reaches the disk, or does not, only here.
void Hdf5File::close_written(const std::string& name, hid_t dataset) const {
  if (H5Dclose(dataset) < 0) fail(name, "cannot write (is the disk full?)");
}

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  prepare_library();
  Hdf5File result(path);
  result.file_ = decltype(file_)(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
  if (!result.file_) result.fail("", "cannot create the file (is the disk full?)");
  return result;
}

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  prepare_library();
  Hdf5File result(path);
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) result.fail("", "no such file");
  result.file_ = decltype(file_)(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  if (!result.file_) result.fail("", "not a readable HDF5 file (truncated or of another format)");
  return result;
}

bool Hdf5File::contains(const std::string& name) const {
  // A link may also lead to other names and other files; we write none that does.
  const auto is_there = [&](const std::string& path) {
    H5L_info_t link;
    return H5Lexists(file_.get(), path.c_str(), H5P_DEFAULT) > 0 &&
           H5Lget_info(file_.get(), path.c_str(), &link, H5P_DEFAULT) >= 0 &&
           link.type == H5L_TYPE_HARD;
  };
  for (size_t slash = name.find('/'); slash != std::string::npos;
       slash = name.find('/', slash + 1)) {
    if (slash > 0 && !is_there(name.substr(0, slash))) return false;
  }
  return is_there(name);
}

bool Hdf5File::is_for_reading() const {
  unsigned intent = 0;
  H5Fget_intent(file_.get(), &intent);
  return (intent & H5F_ACC_RDWR) == 0;
}

std::vector<std::string> Hdf5File::names(const std::string& group) const {
  Group opened(H5Gopen2(file_.get(), group.c_str(), H5P_DEFAULT));
  if (!opened) return {};
  std::vector<std::string> found;
  auto visit = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->push_back(name);
    return 0;
  };
  H5Literate(opened.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, visit, &found);
  std::sort(found.begin(), found.end());
  return found;
}

/// Throws unless the file itself has room for all of a dataset's elements, as for all that we
/// write. A few bytes of HDF5 can promise any number of elements: never written ones, packed ones,
/// or what stands in other files.
void Hdf5File::check_stored(const std::string& name, hid_t dataset) const {
  const Properties created(H5Dget_create_plist(dataset));
  if (H5Pget_layout(created.get()) == H5D_VIRTUAL || H5Pget_external_count(created.get()) != 0) {
    fail(name, "has its values in other files");
  }
  H5O_info_t object;
  if (H5Oget_info2(dataset, &object, H5O_INFO_BASIC) < 0 || object.rc != 1) {
    fail(name, "has several names");  // a file of many would promise each anew
  }
  if (H5Pget_nfilters(created.get()) != 0)
    fail(name, "is compressed, which Mirabelle does not read");
  const Space space(H5Dget_space(dataset));
  const Type type(H5Dget_type(dataset));
  hsize_t file_bytes = 0;
  H5Fget_filesize(file_.get(), &file_bytes);
  const hsize_t stored = std::min<hsize_t>(H5Dget_storage_size(dataset), file_bytes);
  const auto elements = static_cast<hsize_t>(H5Sget_simple_extent_npoints(space.get()));
  if (elements > stored / std::max<size_t>(1, H5Tget_size(type.get()))) {
    fail(name, "promises " + std::to_string(elements) + " elements, of which the file has " +
                   std::to_string(stored) + " bytes");
  }
}

Shape Hdf5File::shape(const std::string& name) const {
  if (!contains(name)) fail(name, "missing");
  Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
  if (!dataset) fail(name, "not a dataset");
  Space space(H5Dget_space(dataset.get()));
  const int rank = H5Sget_simple_extent_ndims(space.get());
  if (rank < 0 || rank > 3) fail(name, "has " + std::to_string(rank) + " axes, wanted at most 3");
  hsize_t extents[3] = {};
  H5Sget_simple_extent_dims(space.get(), extents, nullptr);
  hsize_t room = hsize_t{1} << 60;  // an axis of 0 elements must not hide others that overflow
  for (const hsize_t extent : extents) {
    if (extent > room) fail(name, "has a shape of more elements than any file");
    room /= std::max<hsize_t>(1, extent);
  }
  if (is_for_reading()) check_stored(name, dataset.get());
  switch (rank) {
    case 0:
      return {};
    case 1:
      return {static_cast<int64_t>(extents[0])};
    case 2:
      return {static_cast<int64_t>(extents[0]), static_cast<int64_t>(extents[1])};
    default:
      return {static_cast<int64_t>(extents[0]), static_cast<int64_t>(extents[1]),
              static_cast<int64_t>(extents[2])};
  }
}

DType Hdf5File::dtype(const std::string& name) const {
  if (!contains(name)) fail(name, "missing");
  Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
  if (!dataset) fail(name, "not a dataset");
  Type stored(H5Dget_type(dataset.get()));
  for (DType dtype :
       {DType::kFloat32, DType::kFloat64, DType::kInt32, DType::kInt64, DType::kUint8}) {
    if (H5Tequal(stored.get(), native_type(dtype)) > 0) return dtype;
  }
  fail(name, "has an element type that Mirabelle does not write");
}

void Hdf5File::create_dataset(const std::string& name, const Shape& shape, DType dtype) {
  const Space space = whole_space(shape);
  const Properties links = intermediate_groups();
  const Properties properties = dataset_properties();
  const Dataset dataset(H5Dcreate2(file_.get(), name.c_str(), native_type(dtype), space.get(),
                                   links.get(), properties.get(), H5P_DEFAULT));
  if (!dataset) fail(name, "cannot create");
}

void Hdf5File::write(const std::string& name, const TensorView& values) {
  create_dataset(name, values.shape, values.dtype);
  Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
  if (!values.empty() && H5Dwrite(dataset.get(), native_type(values.dtype), H5S_ALL, H5S_ALL,
                                  H5P_DEFAULT, values.data) < 0) {
    fail(name, "cannot write (is the disk full?)");
  }
  close_written(name, dataset.release());
}

void Hdf5File::write_rows(const std::string& name, int64_t begin, const TensorView& rows) {
  check_rows(name, begin, rows);
  if (rows.empty()) return;
  Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
  const Space target = select_rows(dataset.get(), begin, rows);
  const Space source = whole_space(rows.shape);
  if (H5Dwrite(dataset.get(), native_type(rows.dtype), source.get(), target.get(), H5P_DEFAULT,
               rows.data) < 0) {
    fail(name, "cannot write (is the disk full?)");
  }
  close_written(name, dataset.release());
}

void Hdf5File::create_appendable(const std::string& name, const Shape& row, DType dtype,
                                 int64_t chunk_bytes) {
  std::vector<hsize_t> extents = extents_of(row), limits = extents, chunk = extents;
  extents.insert(extents.begin(), 0);
  limits.insert(limits.begin(), H5S_UNLIMITED);
  const int64_t row_bytes = row.num_elements() * size_in_bytes(dtype);
  chunk.insert(chunk.begin(), std::max<int64_t>(1, chunk_bytes / std::max<int64_t>(1, row_bytes)));
  Space space(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), limits.data()));
  const Properties properties = dataset_properties();
  H5Pset_chunk(properties.get(), static_cast<int>(chunk.size()), chunk.data());
  const Properties links = intermediate_groups();
  Dataset dataset(H5Dcreate2(file_.get(), name.c_str(), native_type(dtype), space.get(),
                             links.get(), properties.get(), H5P_DEFAULT));
  if (!dataset) fail(name, "cannot create");
}

void Hdf5File::append(const std::string& name, const TensorView& rows) {
  const Shape stored = shape(name);
  bool fits = stored.rank() == rows.shape.rank() && stored.rank() > 0;
  for (int axis = 1; fits && axis < stored.rank(); ++axis) fits = stored[axis] == rows.shape[axis];
  if (!fits) {
    std::ostringstream what;
    what << "has shape " << stored << ", cannot take rows of shape " << rows.shape;
    fail(name, what.str());
  }
  if (dtype(name) != rows.dtype) {
    fail(name, std::string("holds ") + to_string(dtype(name)) + ", got " + to_string(rows.dtype));
  }
  if (rows.empty()) return;
  Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
  if (!dataset) fail(name, "missing");
  const std::vector<hsize_t> extents = extents_of(stored.with_outer(stored[0] + rows.shape[0]));
  if (H5Dset_extent(dataset.get(), extents.data()) < 0) fail(name, "cannot grow");
  close_written(name, dataset.release());
  write_rows(name, stored[0], rows);
}

void Hdf5File::check_rows(const std::string& name, int64_t begin, const TensorView& rows) const {
  const Shape stored = shape(name);
  const int64_t end = begin + (rows.shape.rank() ? rows.shape[0] : 0);
  bool fits =
      stored.rank() == rows.shape.rank() && stored.rank() > 0 && begin >= 0 && end <= stored[0];
  for (int axis = 1; fits && axis < stored.rank(); ++axis) fits = stored[axis] == rows.shape[axis];
  if (!fits) {
    std::ostringstream what;
    what << "has shape " << stored << ", wanted rows [" << begin << ", " << end << ") of shape "
         << rows.shape;
    fail(name, what.str());
  }
  if (dtype(name) != rows.dtype) {
    fail(name,
         std::string("holds ") + to_string(dtype(name)) + ", wanted " + to_string(rows.dtype));
  }
}

void Hdf5File::read_rows(const std::string& name, int64_t begin, const TensorView& out) const {
  check_rows(name, begin, out);
  if (out.empty()) return;
  const Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
  const Space source = select_rows(dataset.get(), begin, out);
  const Space target = whole_space(out.shape);
  if (H5Dread(dataset.get(), native_type(out.dtype), target.get(), source.get(), H5P_DEFAULT,
              out.data) < 0) {
    fail(name, "cannot read (truncated or damaged)");
  }
}

void Hdf5File::write_text(const std::string& name, const std::string& text) {
  write(name, view_of(reinterpret_cast<const uint8_t*>(text.data()),
                      {static_cast<int64_t>(text.size())}));
}

std::string Hdf5File::read_text(const std::string& name) const {
  const std::vector<uint8_t> bytes = read<uint8_t>(name);
  return {bytes.begin(), bytes.end()};
}

void Hdf5File::write_strings(const std::string& name, const std::vector<std::string>& strings) {
  std::string bytes;
  std::vector<int64_t> offsets{0};
  for (const std::string& text : strings) {
    bytes += text;
    offsets.push_back(static_cast<int64_t>(bytes.size()));
  }
  write_text(name + "_bytes", bytes);
  write(name + "_offsets", view_of(offsets.data(), {static_cast<int64_t>(offsets.size())}));
}

std::vector<std::string> Hdf5File::read_strings(const std::string& name) const {
  return read_strings(name, 0, shape(name + "_offsets").num_elements() - 1);
}

std::vector<std::string> Hdf5File::read_strings(const std::string& name, int64_t begin,
                                                int64_t end) const {
  if (begin < 0 || end < begin) {
    fail(name + "_offsets",
         "has no strings [" + std::to_string(begin) + ", " + std::to_string(end) + ")");
  }
  const int64_t num_offsets = shape(name + "_offsets").num_elements();
  if (end >= num_offsets) {
    fail(name + "_offsets", "has " + std::to_string(num_offsets) + " elements, wanted those of " +
                                std::to_string(end) + " strings");
  }
  std::vector<int64_t> offsets(end - begin + 1);
  read_rows(name + "_offsets", begin, view_of(offsets.data(), {end - begin + 1}));
  const int64_t total = shape(name + "_bytes").num_elements();
  if (offsets.front() < 0 || offsets.back() > total ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    fail(name + "_offsets", "does not ascend within the " + std::to_string(total) + " bytes");
  }
  std::vector<uint8_t> bytes(offsets.back() - offsets.front());
  read_rows(name + "_bytes", offsets.front(),
            view_of(bytes.data(), {static_cast<int64_t>(bytes.size())}));
  std::vector<std::string> strings;
  for (int64_t i = 0; i < end - begin; ++i) {
    strings.emplace_back(bytes.begin() + (offsets[i] - offsets[0]),
                         bytes.begin() + (offsets[i + 1] - offsets[0]));
  }
  return strings;
}

void Hdf5File::close() {
  if (file_ && H5Fclose(file_.release()) < 0) fail("", "cannot finish writing (is the disk full?)");
}

}  // namespace mirabelle
