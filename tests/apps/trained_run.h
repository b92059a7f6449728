#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "mirabelle/config/config.h"
#include "mirabelle/core/copy.h"
#include "mirabelle/core/files.h"
#include "mirabelle/model/transformer.h"
#include "mirabelle/tokenizer/tokenizer_file.h"
#include "mirabelle/training/checkpoint.h"
#include "support/shared_gpus.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"

namespace mirabelle::testing {

/// A corpus and a training output with one checkpoint of random weights, and executables run on it.
class TrainedRun : public ::testing::Test {
 protected:
  static constexpr int64_t kUsers = 83, kItems = 40;

  TrainedRun() {
    write_tiny_corpus(folder / "corpus", kUsers, kItems, 3);
    const Corpus corpus(folder / "corpus");
    TokenizerFile tokenizer;
    tokenizer.kind = "item_id";
    tokenizer.dataset = corpus.dataset();
    tokenizer.split_hash = corpus.split_hash();
    tokenizer.report = R"({"levels": [{"size": 40, "used": 40, "entropy": 1, "counts": [1, 1]}]})";
    std::vector<int32_t> codes;
    for (int32_t item = 0; item < kItems; ++item) {
      codes.push_back(item);
      tokenizer.item_ids.push_back(id_text(corpus.item_id(item)));
    }
    tokenizer.ids = SemanticIds({kItems}, codes);
    write_tokenizer_file(folder / "tokenizer.h5", tokenizer);

    Config config;
    config.data.corpus = (folder / "corpus").string();
    config.tokenizer.file = (folder / "tokenizer.h5").string();
    config.model.hidden_size = 16;
    config.model.num_layers = 1;
    config.model.num_heads = config.model.num_kv_heads = 2;
    config.model.ffn_hidden_size = 24;
    config.model.initializer_range = 0.4;
    config.data.history_length = 5;
    config.evaluation.beam_size = 12;
    config.evaluation.bootstrap_samples = 50;
    const Transformer model(config.model, tokenizer.ids.vocab_size(),
                            tokenizer.ids.padded_vocab_size(), DType::kFloat32, {8, 8, false});
    initialize_weights(model.weights(), model.layout(), config.model, model.vocab_size(), 1);
    TrainingState state;
    state.step = 30;
    state.tokens = 1000;
    state.seconds = 9;
    state.step_seconds = 4;
    const std::unique_ptr<Communicator> self = make_self_communicator();
    CheckpointWriter writer(*self, model.layout(), {{0, model.layout().num_elements()}},
                            folder / "tokenizer.h5");
    copy(writer.prepare().weights, model.weights(), Stream());
    writer.start(checkpoint_folder(folder / "train", 30), state, to_yaml(config));
    writer.commit();
    write_text_file(folder / "train" / "metrics.jsonl",
                    "{\"step\": 10, \"loss\": 3.5}\n{\"step\": 20, \"loss\": 3.25}\n");
  }

  /// Runs in the folder, with evaluation.checkpoint=train; standard output and error go to out.txt.
  int run(const std::string& program, const std::string& arguments, int ranks = 1) const {
    std::string command = "cd " + folder.path().string() + " && ";
    if (ranks > 1) {
      command +=
          "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe "
          "--bind-to none -n " +
          std::to_string(ranks) + " ";
    }
    command += std::string(MIRABELLE_BIN) + "/" + program + " --set evaluation.checkpoint=train " +
               arguments + testing::shared_gpus(ranks) + " > out.txt 2>&1";
    return WEXITSTATUS(std::system(command.c_str()));
  }
  std::string output() const { return read_text_file(folder / "out.txt"); }
  nlohmann::json read_json(const std::string& name) const {
    return nlohmann::json::parse(read_text_file(folder / name));
  }
  bool exists(const std::string& name) const { return std::filesystem::exists(folder / name); }

  TemporaryFolder folder;
};

}  // namespace mirabelle::testing
