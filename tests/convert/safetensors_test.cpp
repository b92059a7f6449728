#include "mirabelle/convert/safetensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "mirabelle/convert/tensor_source.h"
#include "mirabelle/core/files.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

std::string file_of(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  fs::path write(const std::string& bytes, const std::string& name = "model.safetensors") {
    write_text_file(folder_.path() / name, bytes);
    return folder_.path() / name;
  }
  std::vector<float> read(const fs::path& path, const std::string& name, int64_t begin,
                          int64_t count) {
    std::vector<float> values(count);
    SafetensorsReader(path).read(name, begin, values);
    return values;
  }
  /// What opening this header, and so much data, says after the file's name.
  void expect_refused(const std::string& header, const std::string& message,
                      const std::string& data = "") {
    expect_refused_file(file_of(header, data), message);
  }
  void expect_refused_file(const std::string& bytes, const std::string& message) {
    const fs::path path = write(bytes);
    try {
      const SafetensorsReader reader(path);
      ADD_FAILURE() << "read " << bytes << ", expected: " << message;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      const std::string what = error.what();
      EXPECT_TRUE(what.starts_with(path.string() + ": ")) << what;
      EXPECT_NE(what.find(message), std::string::npos) << what << "\nexpected: " << message;
      EXPECT_EQ(what.find('\n'), std::string::npos);
    }
  }
  void expect_refused_folder(const std::string& message) {
    try {
      open_hugging_face_tensors(folder_.path());
      ADD_FAILURE() << "expected: " << message;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
  }
  testing::TemporaryFolder folder_;
};

// Bytes written by hand, from the format's description.
TEST_F(SafetensorsTest, ReadsTheThreeDtypesOfWeights) {
  const float single[] = {1.5F, -2, 3e-40F};
  const uint16_t half[] = {0x3C00, 0xC000, 0x0001};   // 1, -2, 2^-24
  const uint16_t brain[] = {0x3F80, 0xC040, 0x7F80};  // 1, -3, infinity
  std::string data(reinterpret_cast<const char*>(single), 12);
  data.append(reinterpret_cast<const char*>(half), 6);
  data.append(reinterpret_cast<const char*>(brain), 6);
  const fs::path path = write(file_of(
      R"({"__metadata__":{"format":"pt"},"c":{"dtype":"BF16","shape":[3,1],"data_offsets":[18,24]},)"
      R"("a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},)"
      R"("b":{"dtype":"F16","shape":[1,3],"data_offsets":[12,18]}}   )",
      data));
  EXPECT_EQ(read(path, "a", 0, 3), (std::vector<float>{1.5F, -2, 3e-40F}));
  EXPECT_EQ(read(path, "b", 0, 3), (std::vector<float>{1, -2, std::ldexp(1.0F, -24)}));
  EXPECT_EQ(read(path, "c", 0, 3), (std::vector<float>{1, -3, INFINITY}));
  EXPECT_EQ(read(path, "c", 1, 1), (std::vector<float>{-3}));
  EXPECT_EQ(read(path, "a", 3, 0), (std::vector<float>{}));
  const SafetensorsReader reader(path);
  EXPECT_EQ(reader.tensors().size(), 3u);
  EXPECT_EQ(reader.tensors().at("b").shape, (Shape{1, 3}));
  EXPECT_THROW(read(path, "a", 1, 3), Error);
  EXPECT_THROW(read(path, "d", 0, 1), Error);
}

TEST_F(SafetensorsTest, ReadsBackWhatItWrites) {
  std::vector<float> values(70000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i));
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const fs::path path = folder_.path() / "written.safetensors";
    SafetensorsWriter writer(path, dtype, {{"z", {700, 90}}, {"empty", {0, 3}}, {"a", {7000}}});
    writer.append(std::span(values).first(11));
    writer.append(std::span(values).subspan(11));
    writer.close();
    std::vector<float> expected = values;
    if (dtype == DType::kBFloat16) {
      for (float& value : expected) value = BFloat16(value);
    }
    EXPECT_EQ(read(path, "z", 0, 63000), std::vector(expected.begin(), expected.begin() + 63000));
    EXPECT_EQ(read(path, "a", 0, 7000), std::vector(expected.begin() + 63000, expected.end()));
  }
}

TEST_F(SafetensorsTest, TheWriterWantsEveryElementOnce) {
  SafetensorsWriter writer(folder_.path() / "x", DType::kFloat32, {{"a", {2}}});
  const std::vector<float> values(3);
  EXPECT_THROW(writer.close(), Error);
  EXPECT_THROW(writer.append(values), Error);
  EXPECT_THROW(SafetensorsWriter(folder_.path() / "no" / "x", DType::kFloat32, {}), Error);
}

TEST_F(SafetensorsTest, AnEmptyModelIsAFile) {
  EXPECT_TRUE(SafetensorsReader(write(file_of("{}", ""))).tensors().empty());
}

TEST_F(SafetensorsTest, RefusesLengthsBeyondTheFile) {
  expect_refused_file("", "0 bytes, a .safetensors file has at least 8");
  expect_refused_file("1234567", "7 bytes");
  expect_refused_file(std::string("\x03\0\0\0\0\0\0\0{}", 10),
                      "a header of 3 bytes in a file of 10");
  expect_refused_file(std::string(8, '\xFF') + "{}", "a header of 18446744073709551615 bytes");
}

TEST_F(SafetensorsTest, RefusesHeadersThatAreNoObject) {
  expect_refused("", "header");
  expect_refused("[]", "header is no JSON object");
  expect_refused("{\"a\":", "header");
  expect_refused("{\"\xFF\":{}}", "header");
  expect_refused(std::string(100, '[') + std::string(100, ']'), "header");
  expect_refused(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                 R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
                 "\"a\" is given twice");
}

TEST_F(SafetensorsTest, RefusesTensorsThatMakeNoSense) {
  const auto header = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
           offsets + "}}";
  };
  expect_refused(R"({"a":3})", "tensor \"a\"");
  expect_refused(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", "dtype");
  expect_refused(header("F31", "[1]", "[0,4]"), "unknown dtype 'F31'", "1234");
  expect_refused(header("F32", "[1.5]", "[0,4]"), "shape", "1234");
  expect_refused(header("F32", "[-1]", "[0,4]"), "shape [-1]", "1234");
  expect_refused(header("F32", "[4611686018427387904,4]", "[0,4]"), "more than any file holds",
                 "1234");
  expect_refused(header("F32", "[1,1,1,1,1,1]", "[0,4]"), "6 axes", "1234");
  expect_refused(header("F32", "[2]", "[0,4]"), "has 8 bytes, its data_offsets 4", "1234");
  expect_refused(header("F32", "[1]", "[4,0]"), "data_offsets that are no range", "1234");
  expect_refused(header("F32", "[1]", "[0]"), "data_offsets that are no range", "1234");
  expect_refused(header("F32", "[1]", "[-4,0]"), "data_offsets that are no range", "1234");
  expect_refused(header("F32", "[2]", "[0,8]"), "the tensors have 8 bytes, the file has 4", "1234");
  expect_refused(header("F32", "[1]", "[0,4]"), "the tensors have 4 bytes, the file has 5",
                 "12345");
  expect_refused(header("F32", "[1]", "[1,5]"), "begins at byte 1 of the data, wanted 0", "12345");
}

TEST_F(SafetensorsTest, RefusesOverlapsAndHoles) {
  const auto header = [](int64_t second) {
    return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
           R"("b":{"dtype":"F32","shape":[1],"data_offsets":[)" +
           std::to_string(second) + "," + std::to_string(second + 4) + "]}}";
  };
  expect_refused(header(2), "(tensors overlap)", "123456");
  expect_refused(header(0), "(tensors overlap)", "1234");
  expect_refused(header(5), "(bytes of no tensor)", "123456789");
}

TEST_F(SafetensorsTest, RefusesToReadIntegersAsWeights) {
  const fs::path path =
      write(file_of(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", "12345678"));
  EXPECT_EQ(SafetensorsReader(path).tensors().at("a").dtype, "I64");
  EXPECT_THROW(read(path, "a", 0, 1), Error);
}

TEST_F(SafetensorsTest, AFolderMayHaveItsTensorsInSeveralFiles) {
  const auto one = [&](const std::string& file, const std::string& tensor, float value) {
    SafetensorsWriter writer(folder_.path() / file, DType::kFloat32, {{tensor, {1}}});
    writer.append(std::span(&value, 1));
    writer.close();
  };
  const auto write_index = [&](const std::string& map) {
    write_text_file(folder_.path() / "model.safetensors.index.json",
                    R"({"metadata":{"total_size":8},"weight_map":)" + map + "}");
  };
  expect_refused_folder("holds neither model.safetensors nor model.safetensors.index.json");
  one("1.safetensors", "a", 3);
  one("2.safetensors", "b", 4);
  write_index(R"({"a":"1.safetensors","b":"2.safetensors"})");
  const auto source = open_hugging_face_tensors(folder_.path());
  float value = 0;
  source->read_rows("b", 0, std::span(&value, 1));
  EXPECT_EQ(value, 4);
  EXPECT_EQ(source->tensors().size(), 2u);

  write_index(R"({"a":"1.safetensors","b":"1.safetensors"})");
  expect_refused_folder("tensor \"b\" is not in 1.safetensors");
  write_index(R"({"a":"1.safetensors","b":"3.safetensors"})");
  expect_refused_folder("3.safetensors: cannot read");
  write_index(R"({"a":"../1.safetensors"})");
  expect_refused_folder("wanted a .safetensors file of the same folder");
  write_index(R"({"a":"/etc/passwd"})");
  expect_refused_folder("wanted a .safetensors file of the same folder");
  write_index(R"({"a":7})");
  expect_refused_folder("weight_map");
  write_index("[]");
  expect_refused_folder("weight_map is no object");
  one("2.safetensors", "a", 4);
  write_index(R"({"a":"1.safetensors","b":"2.safetensors"})");
  expect_refused_folder("is also in");
  one("2.safetensors", "c", 4);
  SafetensorsWriter(folder_.path() / "1.safetensors", DType::kFloat32, {{"a", {0}}, {"d", {0}}})
      .close();
  write_index(R"({"a":"1.safetensors","c":"2.safetensors"})");
  expect_refused_folder("names 2 tensors, its files hold 3");
}

}  // namespace
}  // namespace mirabelle
