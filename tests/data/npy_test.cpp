#include "mirabelle/data/npy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "support/errors.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;

/// A .npy file by hand: format version `version`, the header as given, then the bytes.
std::string npy(const std::string& header, const std::string& data, int version = 1) {
  std::string file = "\x93NUMPY";
  file += static_cast<char>(version);
  file += '\0';
  for (int byte = 0; byte < (version == 1 ? 2 : 4); ++byte) {
    file += static_cast<char>(header.size() >> (8 * byte) & 255);
  }
  return file + header + data;
}

std::string header_of(const std::string& type, const std::string& shape,
                      const std::string& fortran = "False") {
  return "{'descr': '" + type + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }\n";
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

TEST(NpyTest, ConvertsEveryHalfExactly) {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    // The oracle is the definition: (-1)^s 2^(e - 15) (1 + f / 1024), or 2^-14 f / 1024 for e = 0.
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double sign = half >> 15 ? -1 : 1;
    const float value = half_to_float(static_cast<uint16_t>(half));
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(value), fraction != 0);
      EXPECT_EQ(std::isinf(value), fraction == 0);
    } else {
      const double wanted = exponent == 0
                                ? sign * std::pow(2.0, -14) * fraction / 1024
                                : sign * std::pow(2.0, exponent - 15) * (1 + fraction / 1024.0);
      ASSERT_EQ(value, wanted) << half;
    }
    ASSERT_EQ(std::signbit(value), half >> 15 == 1) << half;
  }
}

TEST(NpyTest, ReadsAllThreePrecisionsInAllVersions) {
  const TemporaryFolder folder;
  const std::vector<float> wanted{1, -2, 0.5f, 0.25f, -0.125f, 3};
  const std::vector<uint16_t> halves{0x3C00, 0xC000, 0x3800, 0x3400, 0xB000, 0x4200};
  const std::vector<double> doubles(wanted.begin(), wanted.end());
  for (int version : {1, 2, 3}) {
    for (const auto& [type, data] : std::vector<std::pair<std::string, std::string>>{
             {"<f2", bytes_of(halves)}, {"<f4", bytes_of(wanted)}, {"<f8", bytes_of(doubles)}}) {
      NpyReader reader(folder.write("x.npy", npy(header_of(type, "(3, 2)"), data, version)));
      EXPECT_EQ(reader.num_rows(), 3);
      EXPECT_EQ(reader.dim(), 2);
      std::vector<float> rows(6);
      reader.read_rows(1, rows.data());
      reader.read_rows(2, rows.data() + 2);
      EXPECT_EQ(rows, wanted) << type << " version " << version;
    }
  }
}

TEST(NpyTest, ReadsWhatItWrites) {
  const TemporaryFolder folder;
  const std::vector<float> values{1.5f, -2.25f, 1e-30f, 4, 5, 6};
  write_npy(folder / "x.npy", values.data(), 2, 3);
  EXPECT_EQ(read_text_file(folder / "x.npy").size() % 64, 24u);  // data begin at a multiple of 64
  NpyReader reader(folder / "x.npy");
  std::vector<float> rows(6);
  reader.read_rows(2, rows.data());
  EXPECT_EQ(rows, values);
}

TEST(NpyTest, NamesRowAndColumnOfWhatIsNotFinite) {
  const TemporaryFolder folder;
  for (const double bad : {double{NAN}, double{INFINITY}, -double{INFINITY}, 1e300}) {
    NpyReader reader(folder.write(
        "x.npy", npy(header_of("<f8", "(2, 3)"), bytes_of<double>({0, 1, 2, 3, 4, bad}))));
    std::vector<float> rows(6);
    expect_error(ErrorKind::kData,
                 "x.npy: row 1, column 2: ", [&] { reader.read_rows(2, rows.data()); });
  }
}

TEST(NpyTest, RefusesOtherFilesTypesAndShapes) {
  const TemporaryFolder folder;
  const std::string two = bytes_of<float>({1, 2});
  const auto refuse = [&](const std::string& file, const std::string& message) {
    const auto path = folder.write("x.npy", file);
    expect_error(ErrorKind::kData, message, [&] { NpyReader reader(path); });
  };
  refuse("", "is not a .npy file");
  refuse("PK\3\4 a zip archive", "is not a .npy file");
  refuse(npy(header_of("<f4", "(1, 2)"), two, 4), "format version 4");
  refuse(npy(header_of("<f4", "(1, 2)"), two).substr(0, 40), "ends within its header");
  refuse(npy(header_of("<i4", "(1, 2)"), two), "element type '<i4'");
  refuse(npy(header_of(">f4", "(1, 2)"), two), "element type '>f4'");
  refuse(npy(header_of("<f4", "(1, 2)", "True"), two), "fortran_order");
  refuse(npy(header_of("<f4", "(2,)"), two), "has shape (2,), wanted (rows, columns)");
  refuse(npy(header_of("<f4", "(1, 2, 1)"), two), "has shape (1, 2, 1)");
  refuse(npy(header_of("<f4", "(2, 0)"), ""), "has shape (2, 0)");
  refuse(npy(header_of("<f4", "(2, 2)"), two), "its header (2 x 2) wants");
  refuse(npy(header_of("<f4", "(1, 2)"), two + "x"), "its header (1 x 2) wants");
  expect_error(ErrorKind::kData, "cannot read", [&] { NpyReader reader(folder / "none.npy"); });
  expect_error(ErrorKind::kData, "is a folder", [&] { NpyReader reader(folder.path()); });
}

}  // namespace
}  // namespace mirabelle
