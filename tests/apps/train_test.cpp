// The whole line with the real executables: data, tokenizer, training, evaluation.

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "mirabelle/core/device.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/memory_plan.h"
#include "support/shared_gpus.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class TrainProgramTest : public ::testing::Test {
 protected:
  TrainProgramTest() {
    folder.write("tiny.yaml", R"(
data: {corpus: corpus, history_length: 8}
tokenizer: {file: tokenizer.h5, levels: [12, 12]}
model: {hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_hidden_size: 64, dropout: 0.1}
training: {output: run, max_steps: 40, warmup_steps: 5, learning_rate: 8.0e-3, micro_batch_tokens: 256,
           global_batch_tokens: 1024, max_sequence_tokens: 60, log_every_steps: 1,
           validation_every_steps: 20, validation_users: 50, checkpoint_every_steps: 10}
)");
    EXPECT_EQ(run("mirabelle-data synth --output corpus --set synthetic.num_users=300 --set "
                  "synthetic.num_items=200 --set synthetic.branching=[4,4]"),
              0)
        << output();
    EXPECT_EQ(run("mirabelle-tokenizer-build --config tiny.yaml"), 0) << output();
  }

  std::string shell(const std::string& program, int ranks) const {
    const std::string launcher =
        ranks == 1 ? ""
                   : "mpirun -q --oversubscribe --bind-to none -n " + std::to_string(ranks) + " ";
    return "cd " + folder.path().string() +
           " && export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 "
           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 && " +
           launcher + MIRABELLE_BIN "/" + program + testing::shared_gpus(ranks) + " > out.txt 2>&1";
  }
  int run(const std::string& program, int ranks = 1) const {
    return WEXITSTATUS(std::system(shell(program, ranks).c_str()));
  }
  std::string output() const { return read_text_file(folder / "out.txt"); }

  std::vector<std::string> losses(const std::string& run_folder) const {
    std::vector<std::string> values;
    std::ifstream file(folder / (run_folder + "/metrics.jsonl"));
    for (std::string line; std::getline(file, line);) {
      const size_t begin = line.find("\"loss\":");
      if (begin == std::string::npos) continue;
      values.push_back(line.substr(begin, line.find(',', begin) - begin));
    }
    return values;
  }

  testing::TemporaryFolder folder;
};

TEST_F(TrainProgramTest, LearnsAndEvaluatesOnTwoRanks) {
  ASSERT_EQ(run("mirabelle-train --config tiny.yaml --json summary.json", 2), 0) << output();
  const std::vector<std::string> loss = losses("run");
  ASSERT_EQ(loss.size(), 40u);
  EXPECT_LT(std::stod(loss.back().substr(7)), 0.8 * std::stod(loss.front().substr(7)));
  const json summary = json::parse(read_text_file(folder / "summary.json"));
  EXPECT_EQ(summary["train_steps"], 40);
  EXPECT_EQ(summary["ranks"], 2);
  EXPECT_GT(summary["best_validation_recall@10"].get<double>(), 0);

  ASSERT_EQ(run("mirabelle-evaluate --set evaluation.checkpoint=run --json result.json "
                "--predictions predictions.jsonl --report report.html",
                2),
            0)
      << output();
  const json result = json::parse(read_text_file(folder / "result.json"));
  EXPECT_EQ(result["users"], 300);
  EXPECT_EQ(result["train_steps"], 40);
  EXPECT_GT(result["recall@10"].get<double>(), 2 * 10.0 / 200);  // twice a guess of ten items
  EXPECT_LT(result["recall@10"].get<double>(), result["ceiling_recall@10"].get<double>());
}

TEST_F(TrainProgramTest, BeginsWithTheWeightsOfAnotherRun) {
  const std::string train =
      "mirabelle-train --config tiny.yaml --set training.validation_every_steps=0 --set "
      "training.log_every_steps=1 --set training.checkpoint_every_steps=15 ";
  ASSERT_EQ(run(train + "--set training.max_steps=30 --set training.output=first"), 0) << output();
  const std::string second = "--set training.output=second --set training.init_from=first ";
  ASSERT_EQ(run(train + "--set training.max_steps=2 " + second, 2), 0) << output();
  EXPECT_NE(output().find("begin with the weights of first"), std::string::npos) << output();
  const auto loss = [&](const char* name, size_t step) {
    return std::stod(losses(name).at(step - 1).substr(7));
  };
  EXPECT_LT(loss("second", 1), loss("first", 1) - 0.1);
  EXPECT_LT(loss("second", 1), loss("first", 15));
  // A run that goes on has its own weights.
  fs::remove(folder / "second/summary.json");
  ASSERT_EQ(run(train + "--set training.max_steps=4 " + second), 0) << output();
  EXPECT_EQ(output().find("begin with"), std::string::npos) << output();

  EXPECT_EQ(run(train + "--set training.output=third --set training.init_from=nowhere"), 2);
  EXPECT_NE(output().find("nowhere: neither a checkpoint"), std::string::npos) << output();
  EXPECT_EQ(run(train + "--set training.output=third --set training.init_from=first --set "
                        "model.ffn_hidden_size=48"),
            3);
  EXPECT_NE(output().find("by the configuration"), std::string::npos) << output();
}

TEST_F(TrainProgramTest, BeginsWithWhatTheTokenizerKnows) {
  const std::string train =
      "mirabelle-train --config tiny.yaml --set training.max_steps=30 --set "
      "training.validation_every_steps=0 --set training.checkpoint_every_steps=15 ";
  const std::string features =
      "--set training.output=features --set training.initial_embedding=features";
  ASSERT_EQ(run(train + "--set training.output=random"), 0) << output();
  ASSERT_EQ(run(train + features), 0) << output();
  const std::vector<std::string> whole = losses("features");
  EXPECT_NE(whole.front(), losses("random").front());

  // A run that goes on has its embedding from the checkpoint, and needs no features.
  fs::remove_all(folder / "features/checkpoints/step-00000030");
  fs::remove(folder / "features/summary.json");
  fs::rename(folder / "corpus/features.h5", folder / "features.h5");
  ASSERT_EQ(run(train + features), 0) << output();
  fs::rename(folder / "features.h5", folder / "corpus/features.h5");
  EXPECT_NE(output().find("step-00000015"), std::string::npos) << output();
  EXPECT_EQ(losses("features"), whole);
  EXPECT_EQ(run("mirabelle-tokenizer-build --config tiny.yaml --set tokenizer.kind=item_id --set "
                "tokenizer.file=items.h5"),
            0)
      << output();
  EXPECT_EQ(run("mirabelle-train --config tiny.yaml --set tokenizer.file=items.h5 --set "
                "training.initial_embedding=features"),
            2);
  EXPECT_NE(output().find("needs a tokenizer made of features; this one is of kind item_id"),
            std::string::npos)
      << output();
}

TEST_F(TrainProgramTest, ItemsMayBeNamedByTexts) {
  std::string log = "user,item,time\n";
  for (int user = 0; user < 60; ++user) {
    for (int event = 0; event < 6; ++event) {
      log += "u" + std::to_string(user) + ",B000" + std::to_string((user + 2 * event) % 20) + "," +
             std::to_string(1000 * user + event) + "\n";
    }
  }
  folder.write("log.csv", log);
  const std::string config =
      " --config tiny.yaml --set data.corpus=texts --set tokenizer.file=texts.h5 "
      "--set tokenizer.kind=item_id --set training.output=texts-run --set training.max_steps=10 ";
  ASSERT_EQ(run("mirabelle-data import --events log.csv --user-column user --item-column item "
                "--time-column time --output texts"),
            0)
      << output();
  ASSERT_EQ(run("mirabelle-tokenizer-build" + config), 0) << output();
  ASSERT_EQ(run("mirabelle-train" + config), 0) << output();
  ASSERT_EQ(run("mirabelle-evaluate --set evaluation.checkpoint=texts-run --json result.json"), 0)
      << output();
  EXPECT_EQ(json::parse(read_text_file(folder / "result.json"))["users"], 60);
  ASSERT_EQ(run("mirabelle-recommend --set evaluation.checkpoint=texts-run --user u7"), 0)
      << output();
  EXPECT_NE(output().find("B000"), std::string::npos) << output();

  // The same items in another order are another catalogue.
  folder.write(
      "other.csv", "user,item,time\n" + [&] {
        std::string rows;
        for (int i = 0; i < 20; ++i) rows += "u,C000" + std::to_string(i) + ",1\n";
        return rows;
      }());
  ASSERT_EQ(run("mirabelle-data import --events other.csv --user-column user --item-column item "
                "--time-column time --output other"),
            0)
      << output();
  EXPECT_EQ(run("mirabelle-train" + config + "--set data.corpus=other", 2), 3);
  EXPECT_NE(output().find("item 0 is B0000 in texts.h5 and C0000 in other"), std::string::npos)
      << output();
}

TEST_F(TrainProgramTest, EveryLayoutWeighsLossesAndBeginsTheSame) {
  const std::string train =
      "mirabelle-train --config tiny.yaml --set training.max_steps=12 --set "
      "training.validation_every_steps=0 --set training.reproducible=true --set "
      "training.label_smoothing=0.1 --set training.level_weights=[3,2,1] --set "
      "training.prefix_loss=adaptive --set training.prefix_adaptation_rate=0.2 --set "
      "training.initial_embedding=features ";
  ASSERT_EQ(run(train + "--set training.output=alone"), 0) << output();
  ASSERT_EQ(run(train + "--set training.output=grid --set parallel.tensor_parallel_size=2 --set "
                        "parallel.zero_stage=1",
                4),
            0)
      << output();
  EXPECT_EQ(losses("grid"), losses("alone"));
  std::ifstream file(folder / "grid/metrics.jsonl");
  std::string line;
  while (std::getline(file, line)) EXPECT_EQ(json::parse(line)["loss_per_level"].size(), 3u);
}

TEST_F(TrainProgramTest, EveryLayoutTrainsValidatesAndRanksTheSame) {
  const std::string train =
      "mirabelle-train --config tiny.yaml --set training.max_steps=20 --set "
      "training.validation_every_steps=10 --set training.reproducible=true ";
  ASSERT_EQ(run(train + "--set training.output=alone"), 0) << output();
  ASSERT_EQ(run(train + "--set training.output=grid --set parallel.tensor_parallel_size=2 --set "
                        "parallel.sequence_parallel=true --set parallel.zero_stage=2 --set "
                        "training.recompute=block",
                4),
            0)
      << output();
  EXPECT_NE(output().find("2 tensor-parallel (and sequence-parallel) x 2 data-parallel ranks, "
                          "ZeRO stage 2, recompute block"),
            std::string::npos)
      << output();
  EXPECT_EQ(losses("grid"), losses("alone"));
  const auto validations = [&](const std::string& run_folder) {
    std::vector<double> figures;
    std::ifstream file(folder / (run_folder + "/metrics.jsonl"));
    for (std::string line; std::getline(file, line);) {
      const json entry = json::parse(line);
      if (entry.contains("validation")) figures.push_back(entry["validation"]["ndcg@10"]);
    }
    return figures;
  };
  ASSERT_EQ(validations("alone").size(), 2u);
  EXPECT_EQ(validations("grid"), validations("alone"));

  // The checkpoint says nothing of the layout, and every number of ranks lists the same items with
  // the same scores.
  const auto evaluate = [&](const std::string& of, int ranks, const std::string& arguments) {
    const std::string name = of + std::to_string(ranks);
    EXPECT_EQ(run("mirabelle-evaluate --set evaluation.checkpoint=" + of + " --json " + name +
                      ".json --predictions " + name + ".jsonl --report report.html " + arguments,
                  ranks),
              0)
        << output();
    return read_text_file(folder / (name + ".jsonl"));
  };
  const std::string expected = evaluate("alone", 1, "");
  EXPECT_EQ(evaluate("grid", 1, ""), expected);
  EXPECT_EQ(evaluate("grid", 2, "--set parallel.tensor_parallel_size=2"), expected);
  EXPECT_EQ(evaluate("grid", 4, "--set parallel.tensor_parallel_size=2"), expected);
  EXPECT_EQ(json::parse(read_text_file(folder / "grid4.json"))["recall@10"],
            json::parse(read_text_file(folder / "alone1.json"))["recall@10"]);

  const auto recommend = [&](int ranks, const std::string& arguments) {
    EXPECT_EQ(run("mirabelle-recommend --set evaluation.checkpoint=grid --output lists.jsonl " +
                      arguments,
                  ranks),
              0)
        << output();
    return read_text_file(folder / "lists.jsonl");
  };
  EXPECT_EQ(recommend(4, "--set parallel.tensor_parallel_size=4"), recommend(1, ""));
}

TEST_F(TrainProgramTest, RefusesLayoutsThatDoNotFitInOneLine) {
  const auto refuses = [&](const std::string& arguments, int ranks, const std::string& message) {
    EXPECT_EQ(run("mirabelle-train --config tiny.yaml " + arguments, ranks), 2) << output();
    EXPECT_NE(output().find(message), std::string::npos) << output();
  };
  refuses("--set parallel.tensor_parallel_size=2", 3,
          "parallel.tensor_parallel_size 2 does not divide the 3 ranks");
  refuses("", 3, "is 4 parts, which must be divisible by the 3 data-parallel ranks");
  refuses(
      "--set parallel.tensor_parallel_size=2 --set model.num_heads=1 --set "
      "model.num_kv_heads=1",
      2, "model.num_heads 1 must be divisible by the 2 shards");
  refuses("--set training.reproducible=true --set training.reproducible_shards=3", 1,
          "training.reproducible_shards must be a power of two, not 3");
  refuses("--set training.reproducible=true --set training.global_batch_tokens=768", 1,
          "training.reproducible wants a power of two of parts");
  refuses("--set parallel.zero_stage=3", 1, "parallel.zero_stage must be 0, 1 or 2, not 3");
  refuses("--set training.recompute=some", 1,
          "training.recompute must be none, attention or block");
}

TEST_F(TrainProgramTest, LearnsInBfloat16AsInFloat32) {
  const auto last_loss = [&](const std::string& dtype) {
    EXPECT_EQ(run("mirabelle-train --config tiny.yaml --set backend=cpu --set training.output=" +
                  dtype + " --set training.dtype=" + dtype),
              0)
        << output();
    EXPECT_NE(output().find(" threads, " + dtype), std::string::npos) << output();
    return std::stod(losses(dtype).back().substr(7));
  };
  EXPECT_NEAR(last_loss("bfloat16") / last_loss("float32"), 1, 0.02);
}

TEST_F(TrainProgramTest, ItsOwnConfigurationRunsAgainToTheSameBits) {
  ASSERT_EQ(run("mirabelle-train --config tiny.yaml"), 0) << output();
  const std::vector<std::string> first = losses("run");
  ASSERT_EQ(run("mirabelle-train --config run/config.yaml"), 0) << output();
  EXPECT_EQ(losses("run"), first);
  EXPECT_EQ(losses("run/previous-1"), first);
}

TEST_F(TrainProgramTest, AKilledRunGoesOnToTheSameBits) {
  ASSERT_EQ(run("mirabelle-train --config tiny.yaml --set training.output=whole"), 0) << output();
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    execl("/bin/sh", "sh", "-c", shell("mirabelle-train --config tiny.yaml", 1).c_str(), nullptr);
    _exit(127);
  }
  setpgid(child, child);
  const fs::path checkpoint = folder / "run/checkpoints/step-00000010";
  for (int wait = 0; wait < 6000 && !fs::exists(checkpoint); ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  kill(-child, SIGKILL);
  waitpid(child, nullptr, 0);
  ASSERT_TRUE(fs::exists(checkpoint)) << output();
  ASSERT_EQ(run("mirabelle-train --config tiny.yaml"), 0) << output();
  EXPECT_EQ(losses("run"), losses("whole"));
}

TEST_F(TrainProgramTest, FitsItsStepsIntoTheTime) {
  ASSERT_EQ(run("mirabelle-train --config tiny.yaml --set training.max_steps=1000000 --set "
                "training.max_wall_seconds=6 --set training.fit_steps_to_wall_time=true --json "
                "summary.json"),
            0)
      << output();
  const json summary = json::parse(read_text_file(folder / "summary.json"));
  EXPECT_LT(summary["train_seconds"].get<double>(), 12);
  const std::string config = read_text_file(folder / "run/config.yaml");
  EXPECT_NE(config.find("fit_steps_to_wall_time: false"), std::string::npos);
  EXPECT_EQ(config.find("max_steps: 1000000"), std::string::npos);
  // the validations are evenly spaced, and the last step is one
  int64_t validations = 0, last = 0;
  std::istringstream lines(read_text_file(folder / "run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const json entry = json::parse(line);
    if (!entry.contains("validation")) continue;
    ++validations;
    last = entry["step"];
  }
  EXPECT_GE(validations, 1);
  EXPECT_LE(validations, 10);
  EXPECT_EQ(last, summary["train_steps"]);
}

TEST_F(TrainProgramTest, BenchmarksAgainstTheMatrixProduct) {
  ASSERT_EQ(
      run("mirabelle-train --config tiny.yaml --set backend=cpu --benchmark --json benchmark.json",
          2),
      0)
      << output();
  const json result = json::parse(read_text_file(folder / "benchmark.json"));
  EXPECT_EQ(result["ranks"], 2);
  EXPECT_GT(result["matmul_1024_gflops"].get<double>(), 0.1);
  EXPECT_GT(result["tokens_per_second"].get<double>(), 1);
  EXPECT_FALSE(fs::exists(folder / "run"));
}

TEST_F(TrainProgramTest, PlansWhatARunThenSays) {
  const std::string train =
      "mirabelle-train --config tiny.yaml --set backend=cpu --json plan.json ";
  ASSERT_EQ(run(train + "--plan --world-size 2 --set parallel.zero_stage=1"), 0) << output();
  const std::string plan = output();
  EXPECT_NE(plan.find("2 ranks: 1 tensor-parallel x 2 data-parallel, 2 parts each"),
            std::string::npos)
      << plan;
  EXPECT_NE(plan.find("MFU"), std::string::npos) << plan;
  EXPECT_FALSE(fs::exists(folder / "run"));
  const json sized = json::parse(read_text_file(folder / "plan.json"))["plans"][0];
  ASSERT_EQ(run(train + "--set parallel.zero_stage=1 --set training.max_steps=1", 2), 0)
      << output();
  const std::string log = output();
  MemoryPlan memory;
  for (const char* what : {"weights", "gradients", "optimizer", "activations", "validation"}) {
    memory.add(what, sized["memory"][what]);
  }
  EXPECT_EQ(memory.total(), sized["memory_bytes"]);
  EXPECT_NE(log.find("memory per rank: " + memory.describe()), std::string::npos) << log << plan;
}

TEST_F(TrainProgramTest, PlansManyRanksOfALargeModelWithoutCorpus) {
  const std::string train = "mirabelle-train --config " MIRABELLE_SOURCE
                            "/configs/scale/plum_3b.yaml --plan --json plan.json ";
  ASSERT_EQ(run(train + "--plan-vocab 16386 --world-size 8,64,1024 --memory-gib 20"), 0)
      << output();
  const json plan = json::parse(read_text_file(folder / "plan.json"));
  EXPECT_NEAR(plan["parameters"].get<double>(), 3e9, 0.1e9);
  ASSERT_EQ(plan["plans"].size(), 3u);
  EXPECT_EQ(plan["plans"][2]["ranks"], 1024);
  EXPECT_EQ(plan["plans"][2]["data_parallel_size"], 512);
  EXPECT_FALSE(plan["plans"][0]["fits"].get<bool>());
  EXPECT_TRUE(plan["plans"][2]["fits"].get<bool>());
  EXPECT_NE(output().find("WARNING: on 8 ranks a rank needs"), std::string::npos) << output();
  EXPECT_EQ(output().find("WARNING: on 1024"), std::string::npos) << output();
  for (const json& sized : plan["plans"]) {
    const double utilisation = sized["estimate"]["model_flops_utilisation"];
    EXPECT_TRUE(0.05 < utilisation && utilisation < 0.5) << sized;
  }
  EXPECT_EQ(run(train + "--world-size 8 --set tokenizer.file=nowhere.h5"), 2);
  EXPECT_NE(output().find("--plan-vocab"), std::string::npos) << output();
}

TEST_F(TrainProgramTest, RefusesWhatCannotBeTrainedInOneLine) {
  auto refused = [&](const std::string& arguments, int status, const std::string& part) {
    EXPECT_EQ(run("mirabelle-train --config tiny.yaml " + arguments), status) << arguments;
    EXPECT_NE(output().find(part), std::string::npos) << output();
    EXPECT_EQ(output().find("mirabelle-train: "), output().rfind("mirabelle-train: ")) << output();
  };
  refused("--set training.learning_rat=1", 2, "training.learning_rate");
  refused("--set parallel.tensor_parallel_size=0", 2, "tensor_parallel_size must be positive");
  refused("--set model.num_heads=5", 2, "model.hidden_size 32");
  refused("--set data.corpus=", 2, "data.corpus");
  refused(
      "--set training.micro_batch_tokens=1000000000 --set training.global_batch_tokens=1000000000",
      2, "where it can have");
  refused("--set training.level_weights=[1,2]", 2, "semantic IDs have 3 levels");
  refused("--plan --set training.level_weights=[1,2]", 2, "semantic IDs have 3 levels");
  refused("--set training.dtype=float16", 2, "must be float32 or bfloat16, not 'float16'");
  if (num_cuda_devices() == 0) {
    refused("--set backend=cuda", 2, "backend cuda is wanted, but this machine has no GPU");
    EXPECT_EQ(run("mirabelle-train --config tiny.yaml --set backend=cuda", 2), 2);
    EXPECT_NE(output().find("has no GPU that this build can use"), std::string::npos) << output();
  }
  refused("--set data.corpus=nowhere", 3, "nowhere");
  refused("--set tokenizer.file=nowhere.h5", 3, "nowhere.h5: no such file");
  refused("--set tokenizer.file=tiny.yaml", 3, "tiny.yaml");
  EXPECT_FALSE(fs::exists(folder / "run"));
}

}  // namespace
}  // namespace mirabelle
