#include "mirabelle/core/hdf5_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <numeric>

#include "support/errors.h"
#include "support/temporary_folder.h"

namespace mirabelle::testing {
namespace {

namespace fs = std::filesystem;

class Hdf5FileTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  const fs::path path_ = folder_ / "file.h5";

  /// Writes a file with `fill`, closes it and opens it for reading.
  template <typename Fill>
  Hdf5File written(Fill fill) {
    Hdf5File file = Hdf5File::create(path_);
    fill(file);
    file.close();
    return Hdf5File::open(path_);
  }
  template <typename Call>
  void expect_data_error(const std::string& part, Call call) {
    expect_error(ErrorKind::kData, part, call);
    expect_error(ErrorKind::kData, path_.string(), call);  // always names the file
  }
};

template <typename T>
void expect_round_trip(const fs::path& path, const std::vector<T>& values) {
  Hdf5File file = Hdf5File::create(path);
  file.write("x", view_of(values.data(), {static_cast<int64_t>(values.size())}));
  file.close();
  const Hdf5File reopened = Hdf5File::open(path);
  EXPECT_EQ(reopened.dtype("x"), kDTypeOf<T>);
  EXPECT_EQ(reopened.template read<T>("x"), values);
}

TEST_F(Hdf5FileTest, EveryDtypeSurvives) {
  expect_round_trip<float>(path_, {1.5f, -0.0f, 3e38f});
  expect_round_trip<double>(path_, {1.5, 1e-300});
  expect_round_trip<int32_t>(path_, {-5, 2147483647});
  expect_round_trip<int64_t>(path_, {-5, int64_t{1} << 62});
  expect_round_trip<uint8_t>(path_, {0, 255});
  expect_round_trip<float>(path_, {});
}

TEST_F(Hdf5FileTest, ShapesUpToThreeAxesSurvive) {
  std::vector<int32_t> values(24);
  std::iota(values.begin(), values.end(), 0);
  const Hdf5File file = written([&](Hdf5File& f) {
    f.write("deep/group/x", view_of(values.data(), {2, 3, 4}));
    f.write("y", view_of(values.data(), {12, 2}));
  });
  EXPECT_EQ(file.shape("deep/group/x"), (Shape{2, 3, 4}));
  EXPECT_EQ(file.shape("y"), (Shape{12, 2}));
  EXPECT_EQ(file.read<int32_t>("deep/group/x"), values);
}

TEST_F(Hdf5FileTest, ListsAndFindsNames) {
  const float x = 1;
  const Hdf5File file = written([&](Hdf5File& f) {
    f.write("b", view_of(&x, {1}));
    f.write("a/y", view_of(&x, {1}));
    f.write("a/x", view_of(&x, {1}));
  });
  EXPECT_EQ(file.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(file.names("a"), (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(file.names("nowhere").empty());
  EXPECT_TRUE(file.contains("a/x"));
  EXPECT_TRUE(file.contains("a"));
  EXPECT_FALSE(file.contains("a/z"));
  EXPECT_FALSE(file.contains("z/x"));
}

TEST_F(Hdf5FileTest, ReadsRangesOfRows) {
  std::vector<int32_t> values(20);
  std::iota(values.begin(), values.end(), 0);
  const Hdf5File file = written([&](Hdf5File& f) {
    f.write("x", view_of(values.data(), {10, 2}));
  });
  std::vector<int32_t> rows(6);
  file.read_rows("x", 3, view_of(rows.data(), {3, 2}));
  EXPECT_EQ(rows, (std::vector<int32_t>{6, 7, 8, 9, 10, 11}));
  file.read_rows("x", 10, view_of(rows.data(), {0, 2}));  // nothing, at the end
  EXPECT_EQ(rows[0], 6);
}

TEST_F(Hdf5FileTest, RefusesRowsThatAreNotThere) {
  const std::vector<int32_t> values(20);
  const Hdf5File file = written([&](Hdf5File& f) {
    f.write("x", view_of(values.data(), {10, 2}));
  });
  std::vector<int32_t> rows(40);
  expect_data_error("dataset x: has shape [10, 2], wanted rows [8, 11) of shape [3, 2]", [&] {
    file.read_rows("x", 8, view_of(rows.data(), {3, 2}));
  });
  expect_data_error("wanted rows [-1, 2)", [&] {
    file.read_rows("x", -1, view_of(rows.data(), {3, 2}));
  });
  expect_data_error("of shape [3, 3]", [&] {
    file.read_rows("x", 0, view_of(rows.data(), {3, 3}));
  });
  expect_data_error("of shape [3]", [&] { file.read_rows("x", 0, view_of(rows.data(), {3})); });
}

TEST_F(Hdf5FileTest, RowsOfADatasetAreWrittenInAnyOrder) {
  std::vector<float> values(20);
  std::iota(values.begin(), values.end(), 0.0f);
  const Hdf5File file = written([&](Hdf5File& f) {
    f.create_dataset("group/x", {10, 2}, DType::kFloat32);
    f.write_rows("group/x", 7, view_of(values.data() + 14, {3, 2}));
    f.write_rows("group/x", 0, view_of(values.data(), {7, 2}));
    f.write_rows("group/x", 10, view_of(values.data(), {0, 2}));
    expect_data_error("dataset group/x: has shape [10, 2], wanted rows [8, 11) of shape [3, 2]",
                      [&] {
                        f.write_rows("group/x", 8, view_of(values.data(), {3, 2}));
                      });
  });
  EXPECT_EQ(file.shape("group/x"), (Shape{10, 2}));
  EXPECT_EQ(file.read<float>("group/x"), values);
}

TEST_F(Hdf5FileTest, AppendingRowsGrowsTheDataset) {
  std::vector<float> values(2 * 300000);
  std::iota(values.begin(), values.end(), 0.0f);  // several chunks of 1 MiB
  const Hdf5File file = written([&](Hdf5File& f) {
    f.create_appendable("group/x", {2}, DType::kFloat32);
    f.append("group/x", view_of(values.data(), {1, 2}));
    f.append("group/x", view_of(values.data(), {0, 2}));
    f.append("group/x", view_of(values.data() + 2, {299999, 2}));
  });
  EXPECT_EQ(file.shape("group/x"), (Shape{300000, 2}));
  EXPECT_EQ(file.read<float>("group/x"), values);
}

TEST_F(Hdf5FileTest, ChunksHaveTheWantedBytes) {
  written([](Hdf5File& f) {
    f.create_appendable("small", {3}, DType::kFloat32, 1200);
    f.create_appendable("wide", {1000}, DType::kFloat32, 1200);  // one row at least
  });
  const hid_t file = H5Fopen(path_.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  const auto chunk_rows = [&](const char* name) {
    const hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT), list = H5Dget_create_plist(dataset);
    hsize_t chunk[2] = {};
    EXPECT_EQ(H5Pget_chunk(list, 2, chunk), 2);
    H5Pclose(list);
    H5Dclose(dataset);
    return chunk[0];
  };
  EXPECT_EQ(chunk_rows("small"), 100U);
  EXPECT_EQ(chunk_rows("wide"), 1U);
  H5Fclose(file);
}

TEST_F(Hdf5FileTest, AnAppendableOfScalarsMayStayEmpty) {
  const Hdf5File file = written([](Hdf5File& f) { f.create_appendable("x", {}, DType::kInt64); });
  EXPECT_EQ(file.shape("x"), Shape{0});
  EXPECT_TRUE(file.read<int64_t>("x").empty());
}

TEST_F(Hdf5FileTest, TextAndStringsSurvive) {
  const std::vector<std::string> strings = {"", "ä", std::string("nul\0inside", 10), "last"};
  const Hdf5File file = written([&](Hdf5File& f) {
    f.write_text("config", "a: 1\n");
    f.write_text("nothing", "");
    f.write_strings("users", strings);
    f.write_strings("nobody", {});
  });
  EXPECT_EQ(file.read_text("config"), "a: 1\n");
  EXPECT_EQ(file.read_text("nothing"), "");
  EXPECT_EQ(file.read_strings("users"), strings);
  EXPECT_EQ(file.read_strings("users", 1, 3), (std::vector<std::string>{strings[1], strings[2]}));
  EXPECT_TRUE(file.read_strings("users", 4, 4).empty());
  EXPECT_TRUE(file.read_strings("nobody").empty());
  expect_data_error("dataset users_offsets", [&] { file.read_strings("users", 3, 5); });
  expect_data_error("users_offsets: has no strings [3, 2)",
                    [&] { file.read_strings("users", 3, 2); });
  expect_data_error("users_offsets: has no strings [-1, 2)",
                    [&] { file.read_strings("users", -1, 2); });
}

TEST_F(Hdf5FileTest, RefusesStringsWhoseOffsetsAreDamaged) {
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{0, 3, 2, 4}, {-1, 0, 1, 4}, {0, 1, 2, 5}}) {
    const Hdf5File file = written([&](Hdf5File& f) {
      f.write_text("s_bytes", "abcd");
      f.write("s_offsets", view_of(offsets.data(), {4}));
    });
    expect_data_error("dataset s_offsets: does not ascend within the 4 bytes",
                      [&] { file.read_strings("s"); });
  }
}

TEST_F(Hdf5FileTest, RefusesStringsWithoutOffsets) {
  const Hdf5File file = written([&](Hdf5File& f) {
    f.write_text("s_bytes", "");
    f.write("s_offsets", view_of(static_cast<const int64_t*>(nullptr), {0}));
  });
  expect_data_error("dataset s_offsets: has no strings [0, -1)", [&] { file.read_strings("s"); });
  expect_data_error("dataset t_offsets: missing", [&] { file.read_strings("t"); });
}

TEST_F(Hdf5FileTest, RefusesMissingDatasets) {
  const Hdf5File file = written([](Hdf5File& f) { f.write_text("a/x", "text"); });
  expect_data_error("dataset a/y: missing", [&] { file.shape("a/y"); });
  expect_data_error("dataset nowhere/y: missing", [&] { file.dtype("nowhere/y"); });
  expect_data_error("dataset y: missing", [&] { file.read<float>("y"); });
  expect_data_error("dataset a: not a dataset", [&] { file.shape("a"); });
  expect_data_error("dataset a: not a dataset", [&] { file.dtype("a"); });
}

TEST_F(Hdf5FileTest, RefusesTheWrongDtype) {
  const float x[] = {1, 2};
  const Hdf5File file = written([&](Hdf5File& f) { f.write("x", view_of(x, {2})); });
  expect_data_error("dataset x: holds float32, wanted float64", [&] { file.read<double>("x"); });
  expect_data_error("dataset x: holds float32, wanted int32", [&] { file.read<int32_t>("x"); });
}

TEST_F(Hdf5FileTest, RefusesElementsThatTheFileDoesNotHave) {
  const Hdf5File file = written([](Hdf5File& f) {
    f.create_dataset("x", {int64_t{1} << 40}, DType::kFloat32);  // never written
    f.create_dataset("y", {int64_t{1} << 40, 0, int64_t{1} << 40}, DType::kFloat32);
    f.write_strings("s", {"a", "b"});
  });
  expect_data_error("dataset x: promises 1099511627776 elements, of which the file has 0 bytes",
                    [&] { file.read<float>("x"); });
  expect_data_error("dataset y: has a shape of more elements than any file",
                    [&] { file.shape("y"); });
  expect_data_error("dataset s_offsets: has 3 elements, wanted those of 1099511627776 strings",
                    [&] { file.read_strings("s", 0, int64_t{1} << 40); });
}

/// What the library can make, and we never do.
TEST_F(Hdf5FileTest, RefusesWhatIsPackedOrStandsElsewhere) {
  const hid_t file = H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hsize_t extent = 64;
  const hid_t space = H5Screate_simple(1, &extent, nullptr);
  const auto create = [&](const char* name, hid_t properties) {
    const std::vector<float> zeros(extent);
    const hid_t made =
        H5Dcreate2(file, name, H5T_NATIVE_FLOAT, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    ASSERT_GE(H5Dwrite(made, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros.data()), 0);
    H5Dclose(made), H5Pclose(properties);
  };
  const hid_t packed = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(packed, 1, &extent);
  H5Pset_deflate(packed, 9);
  create("packed", packed);
  const hid_t outside = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_external(outside, (folder_ / "other").c_str(), 0, extent * sizeof(float));
  create("outside", outside);
  create("one", H5Pcreate(H5P_DATASET_CREATE));
  H5Lcreate_hard(file, "one", file, "two", H5P_DEFAULT, H5P_DEFAULT);
  create("here", H5Pcreate(H5P_DATASET_CREATE));
  H5Lcreate_soft("/here", file, "soft", H5P_DEFAULT, H5P_DEFAULT);
  H5Lcreate_external("other.h5", "/x", file, "external", H5P_DEFAULT, H5P_DEFAULT);
  H5Sclose(space), H5Fclose(file);

  const Hdf5File opened = Hdf5File::open(path_);
  expect_data_error("dataset packed: is compressed", [&] { opened.read<float>("packed"); });
  expect_data_error("dataset outside: has its values in other files",
                    [&] { opened.read<float>("outside"); });
  expect_data_error("dataset two: has several names", [&] { opened.read<float>("two"); });
  expect_data_error("dataset soft: missing", [&] { opened.read<float>("soft"); });
  expect_data_error("dataset external: missing", [&] { opened.read<float>("external"); });
  EXPECT_EQ(opened.read<float>("here").size(), 64u);
}

TEST_F(Hdf5FileTest, RefusesATruncatedFile) {
  const std::vector<double> values(10000, 1.0);
  written([&](Hdf5File& f) { f.write("x", view_of(values.data(), {10000})); });
  fs::resize_file(path_, fs::file_size(path_) / 2);
  expect_data_error("not a readable HDF5 file (truncated or of another format)",
                    [&] { Hdf5File::open(path_); });
}

TEST_F(Hdf5FileTest, RefusesFilesOfAnotherFormatAndMissingOnes) {
  expect_data_error("no such file", [&] { Hdf5File::open(path_); });
  std::ofstream(path_) << "user,item,time\n1,2,3\n";
  expect_data_error("not a readable HDF5 file", [&] { Hdf5File::open(path_); });
  fs::resize_file(path_, 0);
  expect_data_error("not a readable HDF5 file", [&] { Hdf5File::open(path_); });
}

TEST_F(Hdf5FileTest, RefusesToWriteWhereItCannot) {
  expect_error(ErrorKind::kData, "cannot create the file",
               [&] { Hdf5File::create(folder_ / "no/such/folder.h5"); });
  const float x = 1;
  Hdf5File file = Hdf5File::create(path_);
  file.write("x", view_of(&x, {1}));
  expect_data_error("dataset x: cannot create", [&] { file.write("x", view_of(&x, {1})); });
  expect_data_error("dataset x: cannot create",
                    [&] { file.create_appendable("x", {2}, DType::kFloat32); });
  expect_data_error("dataset x: cannot grow", [&] { file.append("x", view_of(&x, {1})); });
  expect_data_error("dataset y: missing", [&] { file.append("y", view_of(&x, {1})); });
}

TEST_F(Hdf5FileTest, RefusesToAppendRowsOfAnotherShapeOrDtype) {
  const float x[6] = {};
  const double y[2] = {};
  Hdf5File file = Hdf5File::create(path_);
  file.create_appendable("x", {2}, DType::kFloat32);
  expect_data_error("dataset x: has shape [0, 2], cannot take rows of shape [2, 3]", [&] {
    file.append("x", view_of(x, {2, 3}));
  });
  expect_data_error("dataset x: has shape [0, 2], cannot take rows of shape [2]",
                    [&] { file.append("x", view_of(x, {2})); });
  expect_data_error("dataset x: holds float32, got float64", [&] {
    file.append("x", view_of(y, {1, 2}));
  });
  EXPECT_EQ(file.shape("x"), (Shape{0, 2}));
}

TEST_F(Hdf5FileTest, ReplacesAnExistingFile) {
  written([](Hdf5File& f) { f.write_text("old", "old"); });
  const Hdf5File file = written([](Hdf5File& f) { f.write_text("new", "new"); });
  EXPECT_EQ(file.names(), std::vector<std::string>{"new"});
}

}  // namespace
}  // namespace mirabelle::testing
