#!/usr/bin/env python3
"""Trains small models with Mirabelle, exports them, and compares them with what transformers makes
of the exported folder: logits, greedy continuations and beams.

    pip install torch transformers
    tests/interop/compare_with_transformers.py [--bin build/cpu/bin]

The models are a Llama with and without tied embeddings, one with norms of the heads (Qwen3) and one
with biases (Qwen2), each trained for some steps on two ranks, so that the checkpoint is of a split
model. Ends with "N passed, M failed".
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
import transformers

TOLERANCE = 1e-5
MODELS = {
    "llama, tied": {"model.tie_embeddings": "true"},
    "llama, untied, grouped queries": {"model.tie_embeddings": "false", "model.num_kv_heads": 2},
    "qwen3": {"model.query_key_norm": "true", "model.head_dim": 24},
    "qwen2": {"model.qkv_bias": "true", "model.rope_scaling": "linear", "model.rope_factor": 2},
}
TRAINING = {
    "model.hidden_size": 64, "model.num_layers": 2, "model.ffn_hidden_size": 128,
    "training.max_steps": 60, "training.validation_every_steps": 0, "training.dtype": "float32",
    "training.global_batch_tokens": 4096, "training.warmup_steps": 10,
    "parallel.tensor_parallel_size": 2, "backend": "cpu",
}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def settings(values):
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


class Model:
    """A trained model, in both programs."""

    def __init__(self, binaries, folder, corpus, tokenizer, options):
        self.binaries, self.folder = binaries, folder
        mpirun = ["mpirun", "-q", "-n", 2, "--oversubscribe", "--bind-to", "none"]
        run(*mpirun, binaries / "mirabelle-train", *settings({
            **TRAINING, **options, "data.corpus": corpus, "tokenizer.file": tokenizer,
            "training.output": folder / "train"}))
        run(binaries / "mirabelle-convert", "export", folder / "train", folder / "hf")
        self.transformers = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "hf", dtype=torch.float32).eval()
        self.table = json.loads((folder / "hf" / "semantic_ids.json").read_text())

    def logits(self, tokens):
        file = self.folder / "logits.npy"
        run(self.binaries / "mirabelle-convert", "logits", self.folder / "train", file, "--tokens",
            ",".join(map(str, tokens)))
        return numpy.load(file)

    def logits_of_transformers(self, tokens):
        with torch.no_grad():
            return self.transformers(torch.tensor([tokens])).logits[0].numpy()

    def greedy(self, tokens):
        """As many tokens as an item has, by Mirabelle's logits."""
        tokens = list(tokens)
        for _ in range(self.table["num_levels"]):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens

    def greedy_of_transformers(self, tokens):
        return self.transformers.generate(
            torch.tensor([tokens]), max_new_tokens=self.table["num_levels"], do_sample=False,
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long))[0].tolist()

    def recommendations(self, num_beams, num_users):
        file = self.folder / "top.jsonl"
        run(self.binaries / "mirabelle-recommend", "--output", file, "--count", num_beams, *settings({
            "evaluation.checkpoint": self.folder / "train", "evaluation.beam_size": num_beams,
            "evaluation.exclude_history": "false", "evaluation.max_users": num_users}))
        return [json.loads(line) for line in file.read_text().splitlines()]

    def beams_of_transformers(self, tokens, num_beams):
        """Items and scores of beam search over the tokens that items have."""
        children = {}
        for item in self.table["items"].values():
            for depth in range(len(item)):
                children.setdefault(tuple(item[:depth]), set()).add(item[depth])
        start = len(tokens)
        result = self.transformers.generate(
            torch.tensor([tokens]), max_new_tokens=self.table["num_levels"], num_beams=num_beams,
            num_return_sequences=num_beams, do_sample=False, length_penalty=0.0,
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            prefix_allowed_tokens_fn=lambda _, ids: sorted(children[tuple(ids[start:].tolist())]),
            return_dict_in_generate=True, output_scores=True)
        items = {tuple(tokens): item for item, tokens in self.table["items"].items()}
        names = [items[tuple(sequence[start:].tolist())] for sequence in result.sequences]
        return names, result.sequences_scores.numpy()


def histories(corpus_log, num_users):
    """User -> items in the order of time, of a log that was written here."""
    users = {}
    for line in corpus_log.read_text().splitlines()[1:]:
        user, item, _ = line.split(",")
        users.setdefault(user, []).append(item)
    return dict(list(users.items())[:num_users])


def write_log(file, num_users=300, num_items=200, num_events=12):
    random = numpy.random.default_rng(1)
    lines = ["user,item,time"]
    for user in range(num_users):
        item = int(random.integers(num_items))
        for time in range(num_events):
            lines.append(f"u{user},i{item},{time}")
            item = (item * 7 + int(random.integers(4))) % num_items
    file.write_text("\n".join(lines) + "\n")


def compare(model, log, check):
    users = histories(log, 20)
    bos, items = model.table["bos_token"], model.table["items"]
    differences, beams_equal, greedy_equal, largest_score = [], 0, 0, 0.0
    prompts = {user: [bos] + [t for item in history[-20:] for t in items[item]]
               for user, history in users.items()}
    for tokens in list(prompts.values())[:5]:
        ours, theirs = model.logits(tokens), model.logits_of_transformers(tokens)
        differences.append(float(numpy.abs(ours - theirs).max()))
        greedy_equal += model.greedy(tokens) == model.greedy_of_transformers(tokens)
    # not AutoTokenizer: of transformers 5 it takes Qwen2's own class for Qwen2, whatever the folder says
    words = transformers.PreTrainedTokenizerFast.from_pretrained(model.folder / "hf")
    text = " ".join(words.convert_ids_to_tokens(tokens))
    check("the tokenizer of the folder knows the tokens: " + text[:37] + "...",
          words(text)["input_ids"] == tokens and text.startswith("<bos> <level_0_"))
    check(f"logits: largest difference {max(differences):.2e}", max(differences) <= TOLERANCE)
    check(f"greedy continuations: {greedy_equal} of 5 equal", greedy_equal == 5)
    lists = {line["user"]: line for line in model.recommendations(10, len(users) * 100)}
    for user, tokens in prompts.items():
        names, scores = model.beams_of_transformers(tokens, 10)
        beams_equal += names == lists[user]["items"]
        largest_score = max(largest_score, float(numpy.abs(scores - lists[user]["scores"]).max()))
    check(f"10 beams: {beams_equal} of {len(prompts)} lists equal, "
          f"largest difference of a score {largest_score:.2e}",
          beams_equal == len(prompts) and largest_score <= TOLERANCE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bin", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[2] / "build/cpu/bin")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if os.geteuid() == 0:
        os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    results = []

    def check(text, passed):
        results.append(passed)
        print(("ok      " if passed else "FAILED  ") + text, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        log, corpus, tokenizer = folder / "log.csv", folder / "corpus", folder / "tokenizer.h5"
        write_log(log)
        run(arguments.bin / "mirabelle-data", "import", "--events", log, "--user-column", "user",
            "--item-column", "item", "--time-column", "time", "--output", corpus)
        run(arguments.bin / "mirabelle-tokenizer-build", *settings({
            "data.corpus": corpus, "tokenizer.file": tokenizer, "tokenizer.kind": "residual_kmeans",
            "tokenizer.co_occurrence_dim": 16, "tokenizer.levels": "[8,8,8]"}))
        for number, (title, options) in enumerate(MODELS.items()):
            own = folder / str(number)
            own.mkdir()
            model = Model(arguments.bin, own, corpus, tokenizer, options)
            print(f"{title}: {type(model.transformers).__name__}, "
                  f"{model.transformers.num_parameters():,} parameters")
            compare(model, log, check)
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
