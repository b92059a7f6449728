#!/usr/bin/env python3
"""Compares models by their predictions for the same users: the difference and its 95 % interval.

    data_tools/compare_predictions.py --of new-0.jsonl new-1.jsonl --against old-0.jsonl old-1.jsonl [--top-k 10]

The files are those of mirabelle-evaluate --predictions, one per seed. Each user's recall and NDCG are averaged over the
seeds of a model; the interval is a paired bootstrap over the users (percentiles of resampled mean differences),
so it says what other users would have shown, given these trained models; the seeds' sample standard deviation is
printed beside the mean.
"""
import argparse
import json
import math
import random
import statistics


def read(path):
    """{user: targets} and {user: ranked items}"""
    targets, items = {}, {}
    with open(path) as lines:
        for line in map(json.loads, lines):
            user = line["user"]
            if user in items:
                raise SystemExit(f"{path}: user {user} comes twice")
            targets[user] = set(line["targets"] if "targets" in line else [line["target"]])
            items[user] = line["items"]
    return targets, items


def check(files, k):
    """That the files, {path: what read() gave}, are about the same users and targets, in lists of k items."""
    first = next(iter(files))
    wanted = files[first][0]
    for path, (targets, _) in files.items():
        if targets.keys() != wanted.keys():
            raise SystemExit(f"{first} and {path} are about different users")
        for user in targets:
            if targets[user] != wanted[user]:
                raise SystemExit(f"{first} and {path} have different targets for user {user}")
    for path, (_, items) in files.items():
        longest = max(map(len, items.values()), default=0)  # one user's list may be shorter
        if k > longest:
            raise SystemExit(f"{path}: top {k} of lists of {longest} items")


def figures(items, targets, k):
    """Recall and NDCG of one list, with binary gains."""
    ranks = [rank for rank, item in enumerate(items[:k]) if item in targets]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(targets))))
    return len(ranks) / len(targets), sum(1 / math.log2(rank + 2) for rank in ranks) / ideal


def model_figures(seeds, k):
    """By metric: the means over the seeds of each user, and the means over the users of each seed."""
    users = sorted(seeds[0][0])
    values = [[figures(items[user], targets[user], k) for user in users] for targets, items in seeds]
    means = [[statistics.fmean(seed[i][metric] for seed in values) for i in range(len(users))] for metric in range(2)]
    of_seeds = [[statistics.fmean(user[metric] for user in seed) for seed in values] for metric in range(2)]
    return means, of_seeds


def interval(differences, samples, seed):
    """Percentiles 2.5 and 97.5 of the mean over resampled users."""
    generator = random.Random(seed)
    n = len(differences)
    means = sorted(math.fsum(generator.choices(differences, k=n)) / n for _ in range(samples))
    return means[round(0.025 * (samples - 1))], means[round(0.975 * (samples - 1))]


def compare(of, against, k=10, samples=1000, seed=0):
    """{"recall@k": {of, against, difference, low, high, of_seeds, against_seeds}, "ndcg@k": ...}"""
    files = {path: read(path) for path in (*of, *against)}
    check(files, k)
    mine, my_seeds = model_figures([files[path] for path in of], k)
    theirs, their_seeds = model_figures([files[path] for path in against], k)
    result = {}
    for metric, name in enumerate((f"recall@{k}", f"ndcg@{k}")):
        differences = [a - b for a, b in zip(mine[metric], theirs[metric])]
        low, high = interval(differences, samples, seed)
        result[name] = {"of": statistics.fmean(mine[metric]), "against": statistics.fmean(theirs[metric]),
                        "difference": statistics.fmean(differences), "low": low, "high": high,
                        "of_seeds": my_seeds[metric], "against_seeds": their_seeds[metric]}
    return result


def with_deviation(mean, seeds):
    return f"{mean:.4f}" + (f" ± {statistics.stdev(seeds):.4f}" if len(seeds) > 1 else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs="+", required=True, help="predictions of the model, one file per seed")
    parser.add_argument("--against", nargs="+", required=True, help="predictions of what it is compared with")
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1000, help="resamplings")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    result = compare(arguments.of, arguments.against, arguments.top_k, arguments.samples)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'':12}{'of':>17}{'against':>17}{'difference':>12}  95 % interval")
    for name, values in result.items():
        mine, theirs = (with_deviation(values[key], values[f"{key}_seeds"]) for key in ("of", "against"))
        print(f"{name:12}{mine:>17}{theirs:>17}{values['difference']:+12.4f}"
              f"  [{values['low']:+.4f}, {values['high']:+.4f}]")


if __name__ == "__main__":
    main()
