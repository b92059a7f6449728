#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "mirabelle/core/files.h"
#include "mirabelle/data/corpus.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::TemporaryFolder;

struct Outcome {
  int exit_status;
  std::string out, errors;
};

/// mirabelle-data, end to end, as a shell starts it.
class DataProgramTest : public ::testing::Test {
 protected:
  Outcome run(const std::string& arguments, const std::string& before = "") {
    const std::string command = before + "cd " + folder.path().string() +
                                " && " MIRABELLE_BIN "/mirabelle-data " + arguments +
                                " 2> stderr.txt > stdout.txt";
    const int status = std::system(("bash -c '" + command + "'").c_str());
    return {WEXITSTATUS(status), read_text_file(folder / "stdout.txt"),
            read_text_file(folder / "stderr.txt")};
  }
  /// Fails with this status and one line on standard error that holds `message`.
  void expect_failure(int status, const std::string& arguments, const std::string& message,
                      const std::string& before = "") {
    const Outcome outcome = run(arguments, before);
    EXPECT_EQ(outcome.exit_status, status) << arguments << "\n" << outcome.errors;
    std::string line = outcome.errors;
    const size_t begin = line.rfind("mirabelle-data: ");
    ASSERT_NE(begin, std::string::npos) << line;
    line = line.substr(begin);
    EXPECT_NE(line.find(message), std::string::npos) << line;
    EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
    EXPECT_FALSE(fs::exists(folder / "out"));
    EXPECT_FALSE(fs::exists(folder / "out.partial"));
    EXPECT_FALSE(fs::exists(folder / "out.runs.partial"));
  }
  void write_dataset() {
    std::string sequences, times;
    for (int user = 1; user <= 40; ++user) {
      sequences += std::to_string(user);
      times += std::to_string(user);
      for (int event = 0; event < 5 + user % 3; ++event) {
        sequences += " " + std::to_string(1 + (user * event) % 9);
        times += " " + std::to_string(1'500'000'000 + 86'400 * event);
      }
      sequences += "\n";
      times += "\n";
    }
    folder.write("in/sequences.txt", sequences);
    folder.write("in/timestamps.txt", times);
  }
  TemporaryFolder folder;
};

TEST_F(DataProgramTest, ImportsDescribesAndVerifiesAFolder) {
  write_dataset();
  const Outcome imported = run("import in --output out --json import.json");
  ASSERT_EQ(imported.exit_status, 0) << imported.errors;
  const json result = json::parse(read_text_file(folder / "import.json"));
  EXPECT_EQ(result["dataset"], "in");
  EXPECT_EQ(result["users"], 40);
  EXPECT_EQ(result["items"], 9);
  EXPECT_EQ(result["split_hash"], Corpus(folder / "out").split_hash());
  EXPECT_NE(imported.out.find("in: 40 users, 9 items, 240 events in 1 shard"), std::string::npos)
      << imported.out;
  const Outcome described =
      run("stats out --json stats.json --part-tokens 24 --max-sequence-tokens 12 --levels 2 "
          "--parts-per-step 3");
  ASSERT_EQ(described.exit_status, 0) << described.errors;
  EXPECT_NE(described.out.find("2017-07-14 to 2017-07-20"), std::string::npos) << described.out;
  EXPECT_NE(described.out.find("40 in parts of 24 tokens, 3 per step"), std::string::npos);
  EXPECT_NE(described.out.find("packed balanced"), std::string::npos);
  const json stats = json::parse(read_text_file(folder / "stats.json"));
  EXPECT_EQ(stats["test_targets"], 40);
  EXPECT_EQ(stats["packing"]["num_levels"], 2);
  EXPECT_EQ(stats["packing"]["max_sequence_tokens"], 12);
  const Outcome verified = run("--json verify.json verify out");
  ASSERT_EQ(verified.exit_status, 0) << verified.errors;
  EXPECT_NE(verified.out.find("out: whole; 40 users"), std::string::npos);
  EXPECT_EQ(json::parse(read_text_file(folder / "verify.json"))["whole"], true);
}

TEST_F(DataProgramTest, ImportsAnEventLogWithAllItsOptions) {
  folder.write("log.tsv",
               "who\twhat\twhen\tstars\nb\tx\t2020-01-01\t3\na\ty\t2020-01-03\t4\n"
               "a\tx\t2020-01-02\t5\na\tz\t2020-01-04\t1\nc\tx\t2020-01-05\t2\n");
  const Outcome outcome = run(
      "import --events log.tsv --user-column who --item-column what --time-column when --output "
      "out "
      "--name tiny --split time --valid-from 2020-01-03 --test-from 2020-01-04 --users-per-shard 2 "
      "--memory-mib 1 --json import.json");
  ASSERT_EQ(outcome.exit_status, 0) << outcome.errors;
  EXPECT_NE(outcome.out.find("event columns kept: stars"), std::string::npos) << outcome.out;
  const Corpus corpus(folder / "out");
  EXPECT_EQ(corpus.dataset(), "tiny");
  EXPECT_EQ(corpus.num_shards(), 2);
  const HistoryBlock block = corpus.read_histories(0, 0, 2);
  EXPECT_EQ(block.items, (std::vector<int32_t>{0, 1, 2, 0}));
  EXPECT_EQ(block.train_length, (std::vector<int32_t>{1, 1}));
  EXPECT_EQ(block.valid_length, (std::vector<int32_t>{1, 0}));
  EXPECT_EQ(run("verify out").exit_status, 0);
}

TEST_F(DataProgramTest, DrawsASyntheticWorld) {
  const Outcome outcome =
      run("synth --output out --set synthetic.num_users=60 --set synthetic.num_items=512 --json "
          "s.json");
  ASSERT_EQ(outcome.exit_status, 0) << outcome.errors;
  EXPECT_NE(outcome.out.find("ceiling"), std::string::npos);
  EXPECT_EQ(Corpus(folder / "out").num_users(), 60);
  EXPECT_EQ(Corpus(folder / "out").num_items(), 512);
  EXPECT_EQ(run("verify out").exit_status, 0);
}

TEST_F(DataProgramTest, RefusesWrongArgumentsWithStatus2) {
  write_dataset();
  expect_failure(2, "", "wanted import, synth, stats or verify");
  expect_failure(2, "export", "export");
  expect_failure(2, "import in", "--output");
  expect_failure(2, "import --output out", "either a dataset folder or --events");
  expect_failure(2, "import in --events log.csv --output out",
                 "either a dataset folder or --events");
  expect_failure(2, "import in --output out --split halves", "not halves");
  expect_failure(2, "import in --output out --split time", "it wants both");
  expect_failure(2, "import in --output out --test-from 5", "belong to --split time");
  expect_failure(2, "import in --output out --split time --valid-from x --test-from 5",
                 "--valid-from is \"x\"");
  expect_failure(2, "import in --output out --tie-policy random", "not random");
  expect_failure(2, "import in --output out --min-user-events 5", "want --events FILE");
  expect_failure(2, "import --events log.csv --output out", "wants the names");
  expect_failure(2, "import --events log.csv --delimiter ab --output out", "--delimiter is \"ab\"");
  expect_failure(2, "import --events log.csv --features f.npy --output out",
                 "wanted NAME=FILE.npy");
  expect_failure(2, "import --events log.csv --memory-mib 0 --output out", "--memory-mib is 0");
  expect_failure(2, "synth", "synth wants --output");
  expect_failure(2, "stats out --parts-per-step 0", "--parts-per-step");
}

TEST_F(DataProgramTest, RefusesBadDataWithStatus3AndLeavesNothing) {
  write_dataset();
  folder.write("in/sequences.txt", "1 2 3\n2 x\n");
  fs::remove(folder / "in/timestamps.txt");
  expect_failure(3, "import in --output out", "sequences.txt:2: item \"x\"");
  folder.write("log.csv", "u,i,t\n1,2,3\n1,2\n");
  expect_failure(
      3, "import --events log.csv --user-column u --item-column i --time-column t --output out",
      "log.csv:3: has 2 fields");
  expect_failure(3, "stats nowhere", "nowhere/manifest.json: no such file");
}

TEST_F(DataProgramTest, VerifyNamesEveryProblemWithStatus3) {
  write_tiny_corpus(folder / "corpus", 120, 20, 1);
  fs::resize_file(folder / "corpus/shard-00001.h5", 1000);
  fs::remove(folder / "corpus/shard-00002.h5");
  const Outcome outcome = run("verify corpus --json verify.json");
  EXPECT_EQ(outcome.exit_status, 3);
  EXPECT_NE(outcome.errors.find("mirabelle-data: corpus/shard-00001.h5: has 1000 bytes"),
            std::string::npos)
      << outcome.errors;
  EXPECT_NE(outcome.errors.find("mirabelle-data: corpus/shard-00002.h5: cannot read"),
            std::string::npos);
  EXPECT_EQ(json::parse(read_text_file(folder / "verify.json"))["problems"].size(), 3u);
}

TEST_F(DataProgramTest, AFullDiskIsOneLineWithStatus3AndLeavesNothing) {
  std::string sequences;
  for (int user = 1; user <= 3000; ++user) {
    sequences += std::to_string(user);
    for (int event = 0; event < 60; ++event) sequences += " " + std::to_string(1 + event);
    sequences += "\n";
  }
  folder.write("in/sequences.txt", sequences);
  std::string log = "u,i,t\n";
  for (int event = 0; event < 60'000; ++event) log += std::to_string(event) + ",1,1\n";
  folder.write("log.csv", log);
  // No file may grow beyond so many KiB: writing fails like on a full disk.
  for (int kibibytes : {1, 16, 100, 400}) {
    const std::string limit = "trap \"\" XFSZ; ulimit -f " + std::to_string(kibibytes) + "; ";
    expect_failure(3, "import in --output out", "cannot", limit);
    expect_failure(3,
                   "import --events log.csv --user-column u --item-column i --time-column t "
                   "--memory-mib 1 --output out",
                   "cannot", limit);
  }
}

TEST_F(DataProgramTest, HelpTeachesWithExamples) {
  const Outcome general = run("--help");
  EXPECT_EQ(general.exit_status, 0);
  EXPECT_NE(general.out.find("mirabelle-data import beauty --output beauty/corpus"),
            std::string::npos);
  const Outcome import = run("import --help");
  EXPECT_EQ(import.exit_status, 0);
  EXPECT_NE(import.out.find("sequences.txt"), std::string::npos);
  EXPECT_NE(import.out.find("--user-column"), std::string::npos);
  EXPECT_EQ(run("--version").out, "mirabelle-data " MIRABELLE_VERSION "\n");
}

}  // namespace
}  // namespace mirabelle
