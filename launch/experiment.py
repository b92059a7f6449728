"""From a configuration to its figures: what search.py, reproduce.py and ablate_tokenizer.py have in common."""
import hashlib
import json
import os
import re
import subprocess
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


def as_settings(values):
    """{"section.key": value} as arguments of the programs."""
    arguments = []
    for key, value in values.items():
        arguments += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return arguments


def write_file(path, text):
    """Whoever reads `path` finds the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def build(*programs):
    command = ["launch/build.sh", "cpu", *(f"mirabelle-{name}" for name in programs)]
    print("+", *command, flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def machine():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores, {cpu.group(1) if cpu else 'unknown'}"


class Experiments:
    """Runs configurations below one folder; what is there already is not computed again. Relative paths, also those in
    configurations, are below ROOT."""

    def __init__(self, runs, ranks=2, threads=1, programs=ROOT / "build/cpu/bin"):
        self.runs, self.ranks, self.threads, self.programs = ROOT / runs, ranks, threads, Path(programs)
        self.being_built = {}  # the tokenizers' files: locks
        self.running = set()  # processes

    def program(self, name, arguments, log):
        command = [ROOT / "launch/mpirun.sh", self.ranks, self.programs / f"mirabelle-{name}", *arguments]
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as output:
            print("+", *command[2:], file=output, flush=True)
            process = subprocess.Popen(["env", f"OMP_NUM_THREADS={self.threads}", *map(str, command)], stdout=output,
                                       stderr=output, cwd=ROOT)
        self.running.add(process)
        try:
            status = process.wait()
        finally:
            process.terminate()  # if interrupted
            self.running.remove(process)
        if status:
            raise RuntimeError(f"mirabelle-{name} ended with status {status}, see {log}")

    def stop(self):
        """Ends the programs that other threads wait for."""
        for process in list(self.running):
            process.terminate()

    def setting(self, config, key, values={}):
        """The value of `section.key` of a configuration with `values` laid over it, as text."""
        command = [self.programs / "mirabelle-train", "--config", config, *as_settings(values), "--print-config"]
        printed = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
        section, name = key.split(".")
        block = re.search(rf"^{section}:\n((?: .*\n|\n)*)", printed, re.MULTILINE).group(1)
        value = re.search(rf"^  {name}: *(.*?)(?: +#.*)?$", block, re.MULTILINE).group(1)
        return json.loads(value) if value.startswith('"') else value

    def description(self, config, values):
        """All that a run's figures depend on, but for the programs' version."""
        manifest = json.loads((ROOT / self.setting(config, "data.corpus", values) / "manifest.json").read_text())
        return {"config": (ROOT / config).read_text(), "values": values, "split_hash": manifest["split_hash"],
                "features": (manifest["feature_file"] or {}).get("sha256"), "ranks": self.ranks}

    def tokenizer(self, config, values, description):
        """The tokenizer's file, built once for all runs of the same tokenizer, and its report."""
        sections = ("tokenizer.", "rq_vae.", "co_occurrence.", "data.corpus")
        chosen = {key: value for key, value in sorted(values.items()) if key.startswith(sections)}
        if "tokenizer.file" in chosen:
            return chosen["tokenizer.file"], None
        text = json.dumps({**description, "values": chosen})
        file = self.runs / "tokenizers" / (hashlib.sha256(text.encode()).hexdigest()[:12] + ".h5")
        report = file.with_suffix(".json")
        with self.being_built.setdefault(file, threading.Lock()):
            if not report.exists():
                settings = as_settings({**chosen, "tokenizer.file": str(file)})
                self.program("tokenizer-build", ["--config", config, *settings, "--json", report],
                             file.with_suffix(".log"))
        return str(file), json.loads(report.read_text())

    def finished(self, name, split, description, evaluation=None):
        """The figures of a run that is done, or None; an error if its folder is that of another run."""
        folder = self.runs / name
        if folder.exists() and any(folder.iterdir()):
            there = folder / "run.json"
            found = json.loads(there.read_text()) if there.exists() else {}
            differs = [key for key in description if key not in found or found[key] != description[key]]
            if differs:
                raise SystemExit(f"{folder} is of a run with other or unknown {', '.join(differs)}: "
                                 "delete it to run this one")
        result = folder / f"{split}.json"
        if not result.exists():
            return None
        figures = json.loads(result.read_text())
        if figures["evaluation"] != (evaluation or {}):
            raise SystemExit(f"{result} was evaluated with other settings, {figures['evaluation']}: "
                             "delete it to evaluate again")
        return figures

    def run(self, name, config, values, split, evaluation=None):
        """Tokenizer, training, and the best checkpoint's figures on `split`. Added to these: the tokenizer's report as
        `tokenizer`, `minutes` of tokenizer and training, the settings of the `evaluation`, and the `machine`."""
        folder, description = self.runs / name, self.description(config, values)
        if figures := self.finished(name, split, description, evaluation):
            return figures
        write_file(folder / "run.json", json.dumps(description, indent=1) + "\n")
        file, report = self.tokenizer(config, values, description)
        log = folder / "log"
        self.program("train", ["--config", config, *as_settings({**values, "tokenizer.file": file,
                                                                 "training.output": str(folder)})], log)
        checked = {"evaluation.checkpoint": str(folder), "evaluation.split": split, **(evaluation or {})}
        partial = folder / "partial.json"
        self.program("evaluate", [*as_settings(checked), "--json", partial,
                                  "--predictions", folder / f"{split}_predictions.jsonl"], log)
        figures = json.loads(partial.read_text())
        seconds = figures["train_seconds"] + (report["seconds"] if report else 0)  # of resumed runs the sum
        figures.update(minutes=seconds / 60, tokenizer=report, evaluation=evaluation or {}, machine=machine())
        write_file(folder / f"{split}.json", json.dumps(figures))
        partial.unlink()
        return figures
