#!/usr/bin/env python3
"""Runs a final configuration with several seeds, on the test split, and updates docs/results.

  launch/reproduce.py configs/beauty/semantic_ids.yaml --data BEAUTY
  launch/reproduce.py --table                                         # only draws docs/results.md again

Builds and imports what is missing, then for every seed makes the tokenizer, trains, and evaluates the
checkpoint of best validation NDCG@10 once on the test split, in runs/reproduce (what is there is not run again).
Writes docs/results/DATASET_CONFIG.json, and of the same split DATASET_popularity.json and DATASET_markov.json, unless
a row of more seeds is there; one object each:

  dataset, split, split_hash, model      what was measured; model is the configuration's name
  recall@5, recall@10, ndcg@5, ndcg@10   means over the seeds
  NAME_deviation                         sample standard deviation over the seeds, of each of these
  recall@10_head, _torso, _tail          of targets by popularity (evaluation/metrics.h), means over the seeds
  validation_recall@10, validation_ndcg@10   of the chosen checkpoints, means (users of the validation in training)
  coverage@10                            share of the items that anybody is recommended, mean over the seeds
  seeds, steps, minutes                  the seeds, optimizer steps of a run, mean minutes of tokenizer and training
  machine, ranks, version, config        where, by what, the configuration's path

and from these the table docs/results.md, beside published figures (docs/published_results.json).
"""
import argparse
import json
import statistics
import subprocess
from pathlib import Path

from experiment import METRICS, ROOT, Experiments, build, write_file

BANDS = ("head", "torso", "tail")
COLUMNS = (*METRICS, *(f"recall@10_{band}" for band in BANDS))
RESULTS = ROOT / "docs/results"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, help="a configuration in configs/DATASET/")
    parser.add_argument("--data", type=Path, help="folder of the data set, imported if its corpus is missing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only draw docs/results.md from docs/results/*.json")
    arguments = parser.parse_args()
    if not arguments.table:
        arguments.config = dataset_config(parser, arguments.config)
    return arguments


def dataset_config(parser, path):
    """The path from ROOT of a file in configs/DATASET/."""
    if not path:
        parser.error("which configuration?")
    if not path.is_file() or path.resolve().parent.parent != ROOT / "configs":
        parser.error(f"{path} is not a file in {ROOT / 'configs'}/DATASET/")
    return path.resolve().relative_to(ROOT)


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def row(results, prefix=""):
    """Means and deviations of the metrics named prefix + METRICS over several results."""
    values = {name: [result[prefix + name] for result in results] for name in METRICS}
    return {"dataset": results[0]["dataset"], "split": results[0]["split"], "split_hash": results[0]["split_hash"],
            **{name: round(statistics.mean(values[name]), 6) for name in METRICS},
            **{f"{name}_deviation": round(deviation(values[name]), 6) for name in METRICS}}


def write_row(model, values):
    """False if the row that is there has more seeds, and stays."""
    path = RESULTS / f"{values['dataset']}_{model}.json"
    is_kept = path.exists() and len(json.loads(path.read_text())["seeds"]) > len(values["seeds"])
    if not is_kept:
        write_file(path, json.dumps({"model": model, **values}, indent=1) + "\n")
    print(f"{path.name}: recall@10 {values['recall@10']:.4f}, NDCG@10 {values['ndcg@10']:.4f}"
          + ("; the row is kept as it was, it has more seeds" if is_kept else ""))
    return not is_kept


def import_corpus(experiments, config, data):
    corpus = ROOT / experiments.setting(config, "data.corpus")
    if corpus.exists():
        if data:
            print(f"{corpus} is there already and is used; --data is not read")
        return
    if not data:
        raise SystemExit(f"{corpus} is missing: --data must name the folder of the data set")
    command = [experiments.programs / "mirabelle-data", "import", data.resolve(), "--name", config.parent.name,
               "--output", corpus]
    print("+", *command, flush=True)
    subprocess.run(command, check=True)


def machines(names):
    return " and ".join(dict.fromkeys(names))


def reproduce(arguments):
    config, seeds = arguments.config, arguments.seeds
    build("data", "tokenizer-build", "train", "evaluate")
    experiments = Experiments("runs/reproduce", arguments.ranks)
    import_corpus(experiments, config, arguments.data)
    results = []
    for seed in seeds:
        name = f"{config.parent.name}-{config.stem}-{seed}"
        results.append(experiments.run(name, config, {"tokenizer.seed": seed, "training.seed": seed}, "test"))
        print(f"{name}: recall@10 {results[-1]['recall@10']:.4f}, {results[-1]['minutes']:.1f} minutes", flush=True)
    chosen = [result["training"] for result in results]
    common = {"machine": machines(result["machine"] for result in results), "ranks": results[0]["ranks"],
              "version": results[0]["version"]}
    is_written = write_row(config.stem, {
        **row(results),
        **{f"recall@10_{band}": round(statistics.mean(result["bands"][band]["recall"] for result in results), 6)
           for band in BANDS},
        **{f"validation_{name}": round(statistics.mean(run[f"best_validation_{name}"] for run in chosen), 6)
           for name in ("recall@10", "ndcg@10")},
        **{name: round(statistics.mean(result[name] for result in results), 6)
           for name in ("coverage@10",) if name in results[0]},
        "seeds": seeds, "steps": results[0]["train_steps"],
        "minutes": round(statistics.mean(result["minutes"] for result in results), 1), **common,
        "config": str(config)})
    for baseline in ("popularity", "markov") if is_written else ():
        write_row(baseline, {**row(results[:1], baseline + "_"), "seeds": [], "steps": 0, "minutes": 0, **common})


def cell(values, name):
    spread = values.get(f"{name}_deviation", 0)
    return f"{values[name]:.4f}" + (f" ± {spread:.4f}" if spread else "") if values.get(name) is not None else "–"


def draw_table():
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    datasets = sorted({values["dataset"] for values in rows})
    for dataset in datasets:
        if len({values["split_hash"] for values in rows if values["dataset"] == dataset}) > 1:
            raise SystemExit(f"the rows of {dataset} in docs/results have different split hashes: they do not compare")
    published = json.loads((ROOT / "docs/published_results.json").read_text())
    text = ["# Results", "",
            "Drawn by `launch/reproduce.py --table` from `docs/results/*.json`; how the recipes were found stands in",
            "[search.md](search.md). Test split, leave-one-out, the whole catalogue, items of the history not "
            "recommended again.",
            "Means over the seeds ± their sample standard deviation. *head*, *torso* and *tail* are recall@10 of",
            "three groups of targets: the most popular items that make up a third of the training events, the next "
            "third, the rest. Minutes of rows that were not run on one day may be of machines of different speed.", ""]
    for dataset in datasets:
        mine = [values for values in rows if values["dataset"] == dataset]
        mine.sort(key=lambda values: -values["recall@10"])
        where = machines(values["machine"] for values in mine)
        text += [f"## {dataset}", "", f"Split hash `{mine[0]['split_hash'][:12]}`; {where}.", "",
                 "| model | " + " | ".join((*METRICS, *BANDS)) + " | seeds | steps | minutes |", "| --- " * 11 + "|"]
        text += [f"| {values['model']} | " + " | ".join(cell(values, name) for name in COLUMNS) +
                 f" | {len(values['seeds']) or '–'} | {values['steps'] or '–'} | {values['minutes'] or '–'} |"
                 for values in mine]
        text += [f"| {values['model']} (published) | " + " | ".join(cell(values, name) for name in COLUMNS) + " | | | |"
                 for values in published if values["dataset"] == dataset]
        text.append("")
    write_file(ROOT / "docs/results.md", "\n".join(text))
    print("docs/results.md")


if __name__ == "__main__":
    arguments = parse_arguments()
    if not arguments.table:
        reproduce(arguments)
    draw_table()
