#include "mirabelle/training/event_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "mirabelle/core/files.h"
#include "mirabelle/training/metrics_log.h"
#include "support/errors.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

TEST(Crc32cTest, IsThatOfRfc3720) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string rising, falling;
  for (int i = 0; i < 32; ++i) rising += static_cast<char>(i);
  falling.assign(rising.rbegin(), rising.rend());
  EXPECT_EQ(crc32c(rising), 0x46dd794eu);
  EXPECT_EQ(crc32c(falling), 0x113fdb5cu);
  EXPECT_EQ(masked_crc32c("123456789"), 0xc78ab0e5u);
}

/// The fields of a protobuf message, by number: varints and floats as numbers, the rest as bytes.
struct Message {
  std::map<int, std::vector<uint64_t>> numbers;
  std::map<int, std::vector<std::string>> bytes;

  explicit Message(std::string_view text) {
    const auto varint = [&] {
      uint64_t value = 0;
      for (int shift = 0;; shift += 7) {
        const auto byte = static_cast<uint8_t>(text.at(0));
        text.remove_prefix(1);
        value |= static_cast<uint64_t>(byte & 127) << shift;
        if (byte < 128) return value;
      }
    };
    const auto fixed = [&](size_t size) {
      uint64_t value = 0;
      std::memcpy(&value, text.substr(0, size).data(), size);
      text.remove_prefix(size);
      return value;
    };
    while (!text.empty()) {
      const uint64_t key = varint();
      const int field = static_cast<int>(key >> 3);
      if (key % 8 == 0) numbers[field].push_back(varint());
      if (key % 8 == 1) numbers[field].push_back(fixed(8));
      if (key % 8 == 5) numbers[field].push_back(fixed(4));
      if (key % 8 == 2) {
        const uint64_t size = varint();
        bytes[field].emplace_back(text.substr(0, size));
        text.remove_prefix(size);
      }
    }
  }
  float as_float(int field) const {
    const auto bits = static_cast<uint32_t>(numbers.at(field).at(0));
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

/// The records of a file, whose checksums are checked.
std::vector<std::string> records(const fs::path& path) {
  const std::string all = read_text_file(path);
  std::vector<std::string> found;
  for (size_t at = 0; at < all.size();) {
    uint64_t length;
    uint32_t crc_of_length, crc;
    std::memcpy(&length, &all.at(at), 8);
    std::memcpy(&crc_of_length, &all.at(at + 8), 4);
    found.push_back(all.substr(at + 12, length));
    std::memcpy(&crc, &all.at(at + 12 + length), 4);
    EXPECT_EQ(crc_of_length, masked_crc32c(all.substr(at, 8)));
    EXPECT_EQ(crc, masked_crc32c(found.back()));
    at += 16 + length;
  }
  return found;
}

class EventFileTest : public ::testing::Test {
 protected:
  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder_ / "tensorboard")) {
      found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  testing::TemporaryFolder folder_;
};

TEST_F(EventFileTest, HoldsWhatTensorBoardReads) {
  EventFile file(folder_ / "tensorboard");
  file.restart(1000);
  file.add(1001, {{"train/loss", 2.5}, {"validation/ndcg@10", -0.125}});
  EXPECT_NE(file.path().filename().string().find("tfevents"), std::string::npos);
  const std::vector<std::string> found = records(file.path());  // while it is still open
  ASSERT_EQ(found.size(), 3u);
  const Message version(found[0]), restart(found[1]), figures(found[2]);
  EXPECT_EQ(version.bytes.at(3).at(0), "brain.Event:2");
  EXPECT_EQ(restart.numbers.at(2).at(0), 1000u);
  EXPECT_EQ(Message(restart.bytes.at(7).at(0)).numbers.at(1).at(0), 1u);
  EXPECT_EQ(figures.numbers.at(2).at(0), 1001u);
  double wall_time;
  std::memcpy(&wall_time, &figures.numbers.at(1).at(0), sizeof wall_time);
  EXPECT_NEAR(wall_time, static_cast<double>(std::time(nullptr)), 60);
  const Message summary(figures.bytes.at(5).at(0));
  ASSERT_EQ(summary.bytes.at(1).size(), 2u);
  const Message loss(summary.bytes.at(1)[0]), ndcg(summary.bytes.at(1)[1]);
  EXPECT_EQ(loss.bytes.at(1).at(0), "train/loss");
  EXPECT_EQ(loss.as_float(2), 2.5f);
  EXPECT_EQ(ndcg.bytes.at(1).at(0), "validation/ndcg@10");
  EXPECT_EQ(ndcg.as_float(2), -0.125f);
}

TEST_F(EventFileTest, CannotBeWrittenWhereThereIsNoFolder) {
  write_text_file(folder_ / "file", "");
  testing::expect_error("file: cannot", [&] { EventFile(folder_ / "file"); });
}

TEST_F(EventFileTest, EveryStartOfARunBeginsOneWhereItGoesOn) {
  TrainingState state;
  {
    MetricsLog log(folder_.path());
    log.go_on_from(state);
    for (int64_t step = 1; step <= 5; ++step) log.add({{"step", step}, {"loss", 0.5}});
    log.add({{"step", 5}, {"validation", {{"ndcg@10", 0.25}}}});
    state.step = 2;
    log.go_on_from(state);  // back
  }
  MetricsLog log(folder_.path());
  state.step = 3;
  log.go_on_from(state);
  ASSERT_EQ(files().size(), 2u);
  std::vector<uint64_t> steps;
  for (const std::string& record : records(files()[0])) {
    const Message event(record);
    if (event.numbers.contains(2)) steps.push_back(event.numbers.at(2)[0]);
  }
  EXPECT_EQ(steps, (std::vector<uint64_t>{1, 1, 2, 3, 4, 5, 5, 3}));
  ASSERT_EQ(records(files()[1]).size(), 2u);
  EXPECT_EQ(Message(records(files()[1])[1]).numbers.at(2)[0], 4u);
  const std::string lines = read_text_file(folder_ / "metrics.jsonl");
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 2);
}

TEST_F(EventFileTest, ALineIsTakenBackIfItsValidationIsOwed) {
  MetricsLog log(folder_.path());
  TrainingState state;
  log.go_on_from(state);
  log.add({{"step", 5}, {"loss", 0.5}});
  log.add({{"step", 5}, {"validation", {{"ndcg@10", 0.25}}}});
  state.step = 5;
  log.go_on_from(state);
  const auto has_validation = [&] {
    return read_text_file(folder_ / "metrics.jsonl").find("validation") != std::string::npos;
  };
  EXPECT_TRUE(has_validation());
  state.validation_is_owed = true;
  log.go_on_from(state);
  EXPECT_FALSE(has_validation());
  EXPECT_NE(read_text_file(folder_ / "metrics.jsonl").find("loss"), std::string::npos);
}

TEST(TaggedFiguresTest, AreTheFiniteNumbersOfALine) {
  using Figures = std::vector<std::pair<std::string, double>>;
  EXPECT_EQ(tagged_figures({{"step", 3},
                            {"loss", 1.5},
                            {"epoch", 2},
                            {"grad_norm", std::nan("")},
                            {"name", "text"},
                            {"loss_per_level", {1.0, 2.0}},
                            {"validation", {{"ndcg@10", 0.5}, {"note", "none"}}}}),
            (Figures{{"train/epoch", 2},
                     {"train/loss", 1.5},
                     {"loss_per_level/1", 1},
                     {"loss_per_level/2", 2},
                     {"validation/ndcg@10", 0.5}}));
  EXPECT_TRUE(tagged_figures({{"step", 3}, {"stopped_by", "signal"}}).empty());
  EXPECT_TRUE(tagged_figures({{"step", 3}, {"event", "bad_step"}, {"grad_norm", 9.0}}).empty());
}

}  // namespace
}  // namespace mirabelle
