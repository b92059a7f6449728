"""From a configuration to its figures: what search.py, reproduce.py and ablate_tokenizer.py have in common."""
import hashlib
import json
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


def as_settings(values):
    """{"section.key": value} as arguments of the programs."""
    arguments = []
    for key, value in values.items():
        arguments += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return arguments


class Experiments:
    """Runs configurations below one folder; what is there already is not computed again."""

    def __init__(self, runs, ranks=2, threads=1, programs=ROOT / "build/cpu/bin"):
        self.runs, self.ranks, self.threads, self.programs = Path(runs), ranks, threads, Path(programs)
        self.being_built = {}  # the tokenizers' files: locks

    def program(self, name, arguments, log):
        command = [ROOT / "launch/mpirun.sh", self.ranks, self.programs / f"mirabelle-{name}", *arguments]
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as output:
            print("+", *command[2:], file=output, flush=True)
            done = subprocess.run(["env", f"OMP_NUM_THREADS={self.threads}", *map(str, command)], stdout=output,
                                  stderr=output)
        if done.returncode:
            raise RuntimeError(f"mirabelle-{name} ended with status {done.returncode}, see {log}")

    def tokenizer(self, config, values):
        """The tokenizer's file, built once for all runs of the same tokenizer, and its report."""
        sections = ("tokenizer.", "rq_vae.", "co_occurrence.", "data.corpus")
        chosen = {key: value for key, value in sorted(values.items()) if key.startswith(sections)}
        if "tokenizer.file" in chosen:
            return chosen["tokenizer.file"], None
        text = json.dumps(chosen) + Path(config).read_text()
        file = self.runs / "tokenizers" / (hashlib.sha256(text.encode()).hexdigest()[:12] + ".h5")
        report = file.with_suffix(".json")
        with self.being_built.setdefault(file, threading.Lock()):
            if not report.exists():
                settings = as_settings({**chosen, "tokenizer.file": str(file)})
                self.program("tokenizer-build", ["--config", config, *settings, "--json", report],
                             file.with_suffix(".log"))
        return str(file), json.loads(report.read_text())

    def run(self, name, config, values, split, evaluation=None):
        """Tokenizer, training, and the best checkpoint's figures on `split`; `minutes` of training and the
        tokenizer's `report` are added."""
        folder = self.runs / name
        result = folder / f"{split}.json"
        if result.exists():
            return json.loads(result.read_text())
        start = time.time()
        file, report = self.tokenizer(config, values)
        log = folder / "log"
        self.program("train", ["--config", config, *as_settings({**values, "tokenizer.file": file,
                                                                 "training.output": str(folder)})], log)
        minutes = (time.time() - start) / 60
        checked = {"evaluation.checkpoint": str(folder), "evaluation.split": split, **(evaluation or {})}
        partial = folder / "partial.json"
        self.program("evaluate", [*as_settings(checked), "--json", partial,
                                  "--predictions", folder / f"{split}_predictions.jsonl"], log)
        figures = {**json.loads(partial.read_text()), "minutes": minutes, "tokenizer": report}
        partial.unlink()
        result.write_text(json.dumps(figures))
        return figures
