#include "mirabelle/core/files.h"

#include <gtest/gtest.h>

#include <fstream>

#include "support/errors.h"
#include "support/temporary_folder.h"

namespace mirabelle::testing {
namespace {

namespace fs = std::filesystem;

void put(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

class FilesTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
};

TEST_F(FilesTest, ACommittedFileAppearsWhole) {
  AtomicPath target(folder_ / "file");
  put(target.path(), "text");
  EXPECT_FALSE(fs::exists(folder_ / "file"));
  target.commit();
  EXPECT_EQ(read_text_file(folder_ / "file"), "text");
  EXPECT_FALSE(fs::exists(target.path()));
}

TEST_F(FilesTest, WithoutACommitNothingIsLeftAndTheFormerVersionStays) {
  put(folder_ / "file", "old");
  {
    AtomicPath target(folder_ / "file");
    put(target.path(), "new");
  }
  EXPECT_EQ(read_text_file(folder_ / "file"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), {}), 1);
}

TEST_F(FilesTest, ACommitReplacesTheFormerFile) {
  put(folder_ / "file", "old and longer");
  AtomicPath target(folder_ / "file");
  put(target.path(), "new");
  target.commit();
  EXPECT_EQ(read_text_file(folder_ / "file"), "new");
}

TEST_F(FilesTest, ACommitReplacesAWholeFolder) {
  fs::create_directories(folder_ / "run/deep");
  put(folder_ / "run/deep/old", "old");
  AtomicPath target(folder_ / "run/");  // the slash does not matter
  fs::create_directories(target.path() / "other");
  put(target.path() / "other/new", "new");
  target.commit();
  EXPECT_EQ(read_text_file(folder_ / "run/other/new"), "new");
  EXPECT_FALSE(fs::exists(folder_ / "run/deep"));
}

TEST_F(FilesTest, RemovesWhatAKilledRunLeftBehind) {
  fs::path left;
  { left = AtomicPath(folder_ / "run").path(); }
  fs::create_directories(left);
  put(left / "half", "half");
  AtomicPath target(folder_ / "run");
  EXPECT_FALSE(fs::exists(left / "half"));
}

TEST_F(FilesTest, CreatesMissingParents) {
  write_text_file(folder_ / "a/b/c.txt", "text");
  EXPECT_EQ(read_text_file(folder_ / "a/b/c.txt"), "text");
}

TEST_F(FilesTest, RefusesAParentThatIsAFile) {
  put(folder_ / "file", "text");
  expect_error("cannot create", [&] { AtomicPath target(folder_ / "file/child"); });
}

TEST_F(FilesTest, RefusesToCommitWhatWasNeverWritten) {
  AtomicPath target(folder_ / "file");
  expect_error("file.partial: cannot open: No such file", [&] { target.commit(); });
}

TEST_F(FilesTest, RefusesToPutAFileInThePlaceOfAFolder) {
  fs::create_directories(folder_ / "taken/full");
  expect_error("taken: cannot put in place: Is a directory",
               [&] { write_text_file(folder_ / "taken", "text"); });
  EXPECT_TRUE(fs::exists(folder_ / "taken/full"));
}

TEST_F(FilesTest, RefusesToWriteWhereNoFileCanBe) {
  expect_error("/proc/mirabelle: cannot create",
               [&] { write_text_file("/proc/mirabelle/file", "text"); });
  expect_error(ErrorKind::kData, "/proc/file: cannot write: No such file",
               [&] { write_text_file("/proc/file", "text"); });
}

TEST_F(FilesTest, SaysBeforehandWhetherAFileCanBeWritten) {
  write_text_file(folder_ / "old", "text");
  check_writable(folder_ / "old");
  check_writable(folder_ / "new/file");
  EXPECT_EQ(read_text_file(folder_ / "old"), "text");
  EXPECT_TRUE(fs::is_empty(folder_ / "new"));
  expect_error("/proc/mirabelle: cannot create", [&] { check_writable("/proc/mirabelle/file"); });
  expect_error(ErrorKind::kData, "/proc/file: cannot write: No such file",
               [&] { check_writable("/proc/file"); });
  expect_error(ErrorKind::kData, "new: cannot write: is a folder",
               [&] { check_writable(folder_ / "new"); });
}

TEST_F(FilesTest, ReadsBytesOfAnyValue) {
  std::string bytes;
  for (int i = 0; i < 70000; ++i) bytes += static_cast<char>(i * 37 % 256);
  write_text_file(folder_ / "bytes", bytes);
  EXPECT_EQ(read_text_file(folder_ / "bytes"), bytes);
  write_text_file(folder_ / "empty", "");
  EXPECT_EQ(read_text_file(folder_ / "empty"), "");
}

TEST_F(FilesTest, RefusesToReadWhatIsNotAFile) {
  expect_error(ErrorKind::kData, "missing: cannot read: No such file",
               [&] { read_text_file(folder_ / "missing"); });
  expect_error(ErrorKind::kData, ": cannot read: is a folder",
               [&] { read_text_file(folder_.path()); });
  expect_error(ErrorKind::kData, "missing: cannot read: No such file",
               [&] { sha256_of_file(folder_ / "missing"); });
  expect_error(ErrorKind::kData, ": cannot read: is a folder",
               [&] { sha256_of_file(folder_.path()); });
}

// The examples of FIPS 180-2, appendix B.
TEST(Sha256Test, GivesThePublishedDigests) {
  const auto digest = [](const std::string& text) {
    Sha256 sha;
    sha.update(text.data(), text.size());
    return sha.hex_digest();
  };
  EXPECT_EQ(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(digest(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_EQ(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST(Sha256Test, PiecesGiveTheDigestOfTheWhole) {
  Sha256 sha;
  sha.update("a", 1);
  sha.update("", 0);
  sha.update("bc", 2);
  EXPECT_EQ(sha.hex_digest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_F(FilesTest, Sha256OfAFileLargerThanOnePiece) {
  write_text_file(folder_ / "million", std::string(1000000, 'a'));
  write_text_file(folder_ / "more", std::string((1 << 20) + 1, 'a'));
  EXPECT_EQ(sha256_of_file(folder_ / "million"),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  Sha256 sha;
  const std::string text((1 << 20) + 1, 'a');
  sha.update(text.data(), text.size());
  EXPECT_EQ(sha256_of_file(folder_ / "more"), sha.hex_digest());
}

TEST(PlainNameTest, StaysInItsFolder) {
  for (const char* name : {"a", "a.h5", "..a", "...", "a b"}) EXPECT_TRUE(is_plain_name(name));
  for (const char* name : {"", ".", "..", "a/b", "/a", "../a"}) EXPECT_FALSE(is_plain_name(name));
  EXPECT_FALSE(is_plain_name(std::string("a\0b", 3)));
}

}  // namespace
}  // namespace mirabelle::testing
