#include "mirabelle/data/verify.h"

#include <gtest/gtest.h>

#include <fstream>

#include "mirabelle/core/files.h"
#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/data/corpus_writer.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::TemporaryFolder;

class VerifyTest : public ::testing::Test {
 protected:
  VerifyTest() { write_tiny_corpus(corpus, 120, 30, 4); }

  json manifest() const { return json::parse(read_text_file(corpus / "manifest.json")); }
  void edit_manifest(const std::function<void(json&)>& edit) {
    json edited = manifest();
    edit(edited);
    write_text_file(corpus / "manifest.json", edited.dump());
  }
  /// Writes over one element of a dataset in place, as a disk or an editor might.
  template <typename T>
  void overwrite(const std::string& file, const std::string& dataset, int64_t element, T value) {
    const hid_t opened = H5Fopen((corpus / file).c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    const hid_t data = H5Dopen2(opened, dataset.c_str(), H5P_DEFAULT);
    const hid_t type = H5Dget_type(data), space = H5Dget_space(data);
    hsize_t extents[2] = {1, 1};
    const int rank = H5Sget_simple_extent_dims(space, extents, nullptr);
    const auto at = static_cast<hsize_t>(element);
    const hsize_t start[2] = {rank == 2 ? at / extents[1] : at, rank == 2 ? at % extents[1] : 0};
    const hsize_t count[2] = {1, 1};
    H5Sselect_hyperslab(space, H5S_SELECT_SET, start, nullptr, count, nullptr);
    const hid_t one = H5Screate_simple(rank, count, nullptr);
    ASSERT_GE(H5Dwrite(data, type, one, space, H5P_DEFAULT, &value), 0);
    H5Sclose(one), H5Sclose(space), H5Tclose(type), H5Dclose(data), H5Fclose(opened);
  }
  /// Makes the manifest agree with the files again, so that only the contents can give them away.
  void mend_checksums() {
    edit_manifest([&](json& edited) {
      const auto mend = [&](json& entry) {
        const fs::path path = corpus / entry["file"].get<std::string>();
        entry["bytes"] = fs::file_size(path);
        entry["sha256"] = sha256_of_file(path);
      };
      for (json& shard : edited["shards"]) mend(shard);
      mend(edited["catalogue"]);
      mend(edited["feature_file"]);
    });
  }
  /// Exactly these problems, each a part of its line.
  void expect_problems(const std::vector<std::string>& wanted) {
    const std::vector<std::string> problems = verify_corpus(corpus);
    std::string all;
    for (const std::string& problem : problems) all += problem + "\n";
    ASSERT_EQ(problems.size(), wanted.size()) << all;
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_NE(problems[i].find(wanted[i]), std::string::npos)
          << problems[i] << "\nwanted " << wanted[i];
      EXPECT_EQ(problems[i].find('\n'), std::string::npos);
    }
  }
  TemporaryFolder folder;
  fs::path corpus = folder / "corpus";
};

TEST_F(VerifyTest, FindsNothingInAWholeCorpus) {
  expect_problems({});
  double last = 0;
  EXPECT_TRUE(verify_corpus(corpus, [&](double fraction) { last = fraction; }).empty());
  EXPECT_EQ(last, 1.0);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

TEST_F(VerifyTest, FindsAFlippedBitAnywhereInAnyFile) {
  for (const char* name : {"shard-00001.h5", "catalogue.h5", "features.h5"}) {
    const auto size = fs::file_size(corpus / name);
    for (const auto at : {size / 7, size / 2, size - 1}) {
      const auto flip = [&] {
        std::fstream file(corpus / name, std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(static_cast<std::streamoff>(at));
        const int byte = file.get();
        file.seekp(static_cast<std::streamoff>(at));
        file.put(static_cast<char>(byte ^ 4));
      };
      flip();
      const auto problems = verify_corpus(corpus);
      ASSERT_FALSE(problems.empty()) << name << " byte " << at;
      EXPECT_NE(problems[0].find(std::string(name) + ": SHA-256 is "), std::string::npos)
          << problems[0];
      flip();
    }
  }
  expect_problems({});
}

TEST_F(VerifyTest, ReportsAllProblemsAtOnce) {
  fs::resize_file(corpus / "shard-00000.h5", 100);
  fs::remove(corpus / "shard-00002.h5");
  overwrite<float>("features.h5", "features/metadata", 7, NAN);
  expect_problems({"features.h5: SHA-256", "features/metadata: row 1, column 2 is nan",
                   "shard-00000.h5: SHA-256", "shard-00000.h5: has 100 bytes, the manifest says ",
                   "shard-00002.h5: cannot read"});
}

TEST_F(VerifyTest, FindsAnEditedItemByTheSplitHash) {
  const Corpus before(corpus);
  const int32_t item = before.read_histories(1, 0, 1).items[0];
  overwrite<int32_t>("shard-00001.h5", "items", 0, item == 3 ? 4 : 3);
  mend_checksums();
  expect_problems({"manifest.json: split_hash is " + before.split_hash()});
}

TEST_F(VerifyTest, FindsBadNumbersInShards) {
  overwrite<int32_t>("shard-00000.h5", "items", 5, 30);
  overwrite<int64_t>("shard-00001.h5", "timestamps", 0, -2);
  overwrite<float>("shard-00001.h5", "columns/rating", 3, INFINITY);
  overwrite<int64_t>("shard-00002.h5", "offsets", 1, 100'000);
  mend_checksums();
  expect_problems({"shard-00000.h5: dataset items: event 5 is of item number 30",
                   "shard-00001.h5: dataset columns/rating: holds inf",
                   "shard-00001.h5: dataset timestamps: user number 50 has time -2",
                   "shard-00002.h5: dataset offsets: falls from 100000 to "});
}

TEST_F(VerifyTest, FindsLengthsThatAreNotTheSplits) {
  const int32_t train = Corpus(corpus).read_train_lengths(0, 2, 3)[0];
  overwrite<int32_t>("shard-00000.h5", "train_length", 2, train - 1);
  mend_checksums();
  expect_problems({"shard-00000.h5: dataset train_length: user number 2 of " +
                       std::to_string(train + 2) + " events has " + std::to_string(train - 1) +
                       " for training and 1",
                   "split_hash"});
}

TEST_F(VerifyTest, FindsMissingDatasetsAndWrongTypes) {
  const hid_t opened = H5Fopen((corpus / "shard-00000.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  H5Ldelete(opened, "timestamps", H5P_DEFAULT);
  H5Lmove(opened, "valid_length", opened, "x", H5P_DEFAULT, H5P_DEFAULT);
  H5Lmove(opened, "columns/rating", opened, "valid_length", H5P_DEFAULT, H5P_DEFAULT);
  H5Fclose(opened);
  mend_checksums();
  expect_problems({"shard-00000.h5: dataset timestamps: missing",
                   "shard-00000.h5: dataset columns/rating: missing",
                   "shard-00000.h5: dataset valid_length: has shape "});
}

TEST_F(VerifyTest, FindsBadIdsTitlesAndMetadata) {
  overwrite<uint8_t>("shard-00000.h5", "user_ids_bytes", 0, 'x');  // user "1"
  overwrite<uint8_t>("shard-00000.h5", "user_ids_bytes", 2, '2');  // user "3" becomes a second "2"
  overwrite<uint8_t>("catalogue.h5", "item_ids_bytes", 1, '1');    // item "2" a second "1"
  overwrite<uint8_t>("catalogue.h5", "metadata_bytes", 0, '[');
  mend_checksums();
  expect_problems({"catalogue.h5: dataset item_ids: item number 1 has the ID 1 of item number 0",
                   "catalogue.h5: dataset metadata: item number 0: malformed JSON",
                   "user number 0's ID \"x\" is no integer",
                   "dataset user_ids: user 2 has come before, as user number 1", "split_hash"});
}

TEST_F(VerifyTest, FindsAnUnreadableManifest) {
  edit_manifest([](json& edited) { edited["schema_version"] = 9; });
  expect_problems({"manifest.json: schema version is 9"});
  fs::remove(corpus / "manifest.json");
  expect_problems({"manifest.json: no such file"});
}

TEST_F(VerifyTest, FindsFeaturesOfAnotherShape) {
  edit_manifest([](json& edited) { edited["features"][1]["dim"] = 6; });
  expect_problems({"dataset features/metadata: has shape [30, 5], the manifest says [30, 6]"});
}

TEST_F(VerifyTest, ChecksTheLengthsOfATimeSplit) {
  CorpusOptions options;
  options.dataset = "time";
  options.split = "time";
  options.valid_from = 100;
  options.test_from = 200;
  CorpusWriter writer(corpus, options, true, {});
  writer.add_item("a");
  writer.add_user({"1", {0, 0, 0}, {50, 150, 250}, {}, ""});
  writer.finish();
  expect_problems({});
  edit_manifest([](json& edited) { edited["split"]["test_from"] = 150; });
  expect_problems(
      {"user number 0 of 3 events has 1 for training and 1 for validation, the split gives "
       "1 and 0"});
}

}  // namespace
}  // namespace mirabelle
