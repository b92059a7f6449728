#!/usr/bin/env python3
"""The tokenizer's parts, one at a time, and what the retrieval model's recall@10 says of them.

  launch/ablate_tokenizer.sh --config configs/beauty/tokenizer_ablation.yaml --data BEAUTY

Every arm of the table below is that configuration with a few keys changed, at the same number of code bits; per seed
(of tokenizer and model) it builds the tokenizer, trains the model and evaluates its best checkpoint on the test
split. Writes docs/tokenizer_ablation/DATASET.json and draws docs/tokenizer_ablation.md from all of these:

  unique           share of the items with codes of their own, before collisions are resolved
  partners near    recall@10 of the items met together, ranked by the codes they share (training data)
  agreement        adjusted Rand index of the first level's groups, mean over pairs of seeds: 1 = the same groups
  recall@10        of the retrieval model, mean and standard deviation over the seeds
  against SID-v2   mean difference, with a paired bootstrap 95 % interval over users

Runs that are done are not repeated, so an interrupted ablation goes on where it stopped. With --arms, the new rows
replace those of the same arms in DATASET.json, if that is of the same configuration, split and seeds; a file of more
seeds is kept as it is. Their last column wants the runs of SID-v2 to be there.
"""
import argparse
import concurrent.futures
import itertools
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from experiment import ROOT, Experiments, build, write_file
from reproduce import dataset_config, import_corpus, machines

sys.path.append(str(ROOT / "data_tools"))
from compare_predictions import compare  # noqa: E402

EQUAL = {"tokenizer.levels": [256, 256, 256]}  # as many bits as the configuration's [512, 256, 128]
REFERENCE = "SID-v2"
ARMS = {
    "residual k-means": {"tokenizer.kind": "residual_kmeans", **EQUAL},
    "residual k-means, with co-occurrence features": {"tokenizer.kind": "residual_kmeans",
                                                      "tokenizer.co_occurrence_dim": 128, **EQUAL},
    "plain RQ-VAE": {**EQUAL, "rq_vae.progressive_masking": False, "rq_vae.contrastive_weight": 0},
    REFERENCE: {},
    "SID-v2 without multi-resolution": EQUAL,
    "SID-v2 without progressive masking": {"rq_vae.progressive_masking": False},
    "SID-v2 without the second source": {"tokenizer.features": None},  # the first of the configuration's
    "SID-v2 without co-occurrence": {"rq_vae.contrastive_weight": 0},
    "SID-v2 with co-occurrence features": {"tokenizer.co_occurrence_dim": 128},
    "SID-v2 with the straight-through estimator": {"rq_vae.gradient_estimator": "straight_through"},
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/beauty/tokenizer_ablation.yaml")
    parser.add_argument("--data", type=Path, help="folder of the data set, imported if its corpus is missing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="NAME",
                        help="only these: " + "; ".join(ARMS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--ranks", type=int, default=2, help="MPI ranks of a run, with a thread each")
    arguments = parser.parse_args()
    arguments.config = dataset_config(parser, arguments.config)
    return arguments


class Ablation:
    def __init__(self, config, ranks):
        self.config = config
        self.name = config.parent.name
        self.experiments = Experiments("runs/tokenizer_ablation", ranks)

    def folder(self, arm, seed):
        return f"{self.name}-{arm.replace(' ', '_').replace(',', '')}-{seed}"

    def values(self, arm, seed):
        values = {**ARMS[arm], "tokenizer.seed": seed, "training.seed": seed}
        if "tokenizer.features" in values:
            features = self.experiments.setting(self.config, "tokenizer.features")
            values["tokenizer.features"] = [features.strip("[]").split(",")[0].strip()]
        return values

    def is_done(self, arm, seed):
        description = self.experiments.description(self.config, self.values(arm, seed))
        return self.experiments.finished(self.folder(arm, seed), "test", description) is not None

    def run(self, arm, seed):
        result = self.experiments.run(self.folder(arm, seed), self.config, self.values(arm, seed), "test")
        print(f"{arm}, seed {seed}: unique {result['tokenizer']['unique_nearest']:.3f}, "
              f"recall@10 {result['recall@10']:.4f}, {result['minutes']:.1f} minutes", flush=True)
        return result

    def run_all(self, arms, seeds, jobs):
        """{arm: results by seed}; all arms of the first seed are run first."""
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            runs = {(arm, seed): pool.submit(self.run, arm, seed) for seed in seeds for arm in arms}
            try:
                return {arm: [runs[arm, seed].result() for seed in seeds] for arm in arms}
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                self.experiments.stop()
                raise
            finally:
                pool.shutdown(cancel_futures=True)  # of a run that failed; else all are done

    def predictions(self, arm, seeds):
        return [self.experiments.runs / self.folder(arm, seed) / "test_predictions.jsonl" for seed in seeds]

    def agreement(self, results):
        """Mean over pairs of seeds, of the first level."""
        values = []
        for a, b in itertools.combinations([result["tokenizer"]["file"] for result in results], 2):
            output = self.experiments.runs / "agreement.json"
            subprocess.run([self.experiments.programs / "mirabelle-tokenizer-build", "--compare", a, b,
                            "--json", output], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            values.append(json.loads(output.read_text())["agreement"][0])
        return statistics.mean(values) if values else None

    def row(self, arm, results, seeds, reference):
        reports = [result["tokenizer"] for result in results]
        recalls = [result["recall@10"] for result in results]
        values = {"arm": arm, "bits": code_bits(level["size"] for level in reports[0]["levels"]),
                  "unique": statistics.mean(report["unique_nearest"] for report in reports),
                  "prefix_recall@10": statistics.mean(report["prefix_recall"]["recall@10"] for report in reports),
                  "agreement": self.agreement(results), "recall@10": statistics.mean(recalls),
                  "recall@10_deviation": statistics.stdev(recalls) if len(recalls) > 1 else 0.0}
        if reference and arm != REFERENCE:
            against = compare(self.predictions(arm, seeds), self.predictions(REFERENCE, seeds))["recall@10"]
            values["difference"] = {key: against[key] for key in ("difference", "low", "high")}
        return values


def code_bits(sizes):
    bits = round(sum(map(math.log2, sizes)), 1)
    return int(bits) if bits.is_integer() else bits


def percent(value):
    return "–" if value is None else f"{100 * value:.1f} %"


def table(study):
    lines = ["| tokenizer | bits | unique | partners near | agreement | recall@10 | against SID-v2 |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in study["rows"]:
        agreement = "–" if row["agreement"] is None else f"{row['agreement']:.3f}"
        against = row.get("difference")
        interval = f"{against['difference']:+.4f} [{against['low']:+.4f}, {against['high']:+.4f}]" if against else "–"
        lines.append(f"| {row['arm']} | {row['bits']} | {percent(row['unique'])} | {percent(row['prefix_recall@10'])} "
                     f"| {agreement} | {row['recall@10']:.4f} ± {row['recall@10_deviation']:.4f} | {interval} |")
    return lines


def draw(folder):
    text = ["# What each part of the tokenizer is worth", "",
            "Drawn by `launch/ablate_tokenizer.sh`, whose `--help` says what the columns mean. The parts are those of",
            "PLUM's SID-v2; here gradients pass the quantizer by the rotation trick (`rq_vae.gradient_estimator`), and",
            "the contrastive loss compares cosines, where the paper has dot products",
            "(`rq_vae.contrastive_similarity`).", "",
            "The last column is the change of recall@10 with a paired bootstrap 95 % interval over the users: an",
            "interval that contains 0 means that the part made no difference that these users could show. It takes the",
            "trained models as they are, so the deviations over the seeds matter as well: a change no larger than",
            "these may be chance.", ""]
    for path in sorted(folder.glob("*.json")):
        study = json.loads(path.read_text())
        text += [f"## {study['dataset']}", "",
                 f"Test split, hash `{study['split_hash'][:12]}`; seeds {', '.join(map(str, study['seeds']))}; "
                 f"{study['machine']}; `{study['config']}`.", "", *table(study), ""]
    write_file(ROOT / "docs/tokenizer_ablation.md", "\n".join(text))
    print("docs/tokenizer_ablation.md")


def merged(study, old):
    """`study` with the rows of `old` that it does not have, if both are about the same."""
    if any(study[key] != old[key] for key in ("config", "split_hash", "seeds")):
        return study
    rows = {row["arm"]: row for row in (*old["rows"], *study["rows"])}
    return {**study, "machine": machines((old["machine"], study["machine"])),
            "rows": [rows[arm] for arm in ARMS if arm in rows]}


def write(study, folder):
    path = folder / f"{study['dataset']}.json"
    old = json.loads(path.read_text()) if path.exists() else None
    if old and len(old["seeds"]) > len(study["seeds"]):
        print("\n".join(table(study)) + f"\n{path.name} is kept as it was, it has more seeds")
        return
    write_file(path, json.dumps(merged(study, old) if old else study, indent=1) + "\n")
    draw(folder)


def main():
    arguments = parse_arguments()
    config, arms, seeds = arguments.config, arguments.arms, arguments.seeds
    build("data", "tokenizer-build", "train", "evaluate")
    ablation = Ablation(config, arguments.ranks)
    import_corpus(ablation.experiments, config, arguments.data)
    has_reference = REFERENCE in arms or all(ablation.is_done(REFERENCE, seed) for seed in seeds)
    results = ablation.run_all(arms, seeds, arguments.jobs)
    all_results = [result for arm in arms for result in results[arm]]
    write({"dataset": all_results[0]["dataset"], "split_hash": all_results[0]["split_hash"], "seeds": seeds,
           "machine": machines(result["machine"] for result in all_results), "config": str(config),
           "rows": [ablation.row(arm, results[arm], seeds, has_reference) for arm in arms]},
          ROOT / "docs/tokenizer_ablation")


if __name__ == "__main__":
    main()
