#!/usr/bin/env python3
"""Compares models by their predictions for the same users: the difference and its 95 % interval.

    data_tools/compare_predictions.py --of new-0.jsonl new-1.jsonl --against old-0.jsonl old-1.jsonl [--top-k 10]

The files are those of mirabelle-evaluate --predictions, one per seed. Each user's recall and NDCG are averaged over the
seeds of a model; the interval is a paired bootstrap over the users (percentiles of resampled mean differences),
so it says what other users would have shown, given these trained models; the seeds' spread is printed beside it.
"""
import argparse
import json
import math
import random
import statistics


def user_figures(path, k):
    """{user: (recall, ndcg)} with binary gains."""
    figures = {}
    with open(path) as lines:
        for line in map(json.loads, lines):
            targets = set(line.get("targets", [line.get("target")]))
            ranks = [rank for rank, item in enumerate(line["items"][:k]) if item in targets]
            ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(targets))))
            figures[line["user"]] = (len(ranks) / len(targets), sum(1 / math.log2(rank + 2) for rank in ranks) / ideal)
    return figures


def read_model(paths, k):
    """Figures of each seed, and their means per user, in the order of the users."""
    seeds = [user_figures(path, k) for path in paths]
    users = sorted(seeds[0])
    for path, seed in zip(paths, seeds):
        if sorted(seed) != users:
            raise SystemExit(f"{path} is about other users than {paths[0]}")
    means = [[statistics.fmean(seed[user][metric] for seed in seeds) for user in users] for metric in range(2)]
    spread = [[statistics.fmean(figures[metric] for figures in seed.values()) for seed in seeds] for metric in range(2)]
    return users, means, spread


def interval(differences, samples, seed):
    """Percentiles 2.5 and 97.5 of the mean over resampled users."""
    generator = random.Random(seed)
    n = len(differences)
    means = sorted(math.fsum(generator.choices(differences, k=n)) / n for _ in range(samples))
    return means[round(0.025 * (samples - 1))], means[round(0.975 * (samples - 1))]


def compare(of, against, k=10, samples=1000, seed=0):
    """{"recall@k": {of, against, difference, low, high, of_seeds, against_seeds}, "ndcg@k": ...}"""
    users, mine, my_seeds = read_model(of, k)
    other_users, theirs, their_seeds = read_model(against, k)
    if users != other_users:
        raise SystemExit(f"{of[0]} and {against[0]} are about different users")
    result = {}
    for metric, name in enumerate((f"recall@{k}", f"ndcg@{k}")):
        differences = [a - b for a, b in zip(mine[metric], theirs[metric])]
        low, high = interval(differences, samples, seed)
        result[name] = {"of": statistics.fmean(mine[metric]), "against": statistics.fmean(theirs[metric]),
                        "difference": statistics.fmean(differences), "low": low, "high": high,
                        "of_seeds": my_seeds[metric], "against_seeds": their_seeds[metric]}
    return result


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
    print(f"{'':12}{'of':>9}{'against':>9}{'difference':>12}  95 % interval")
    for name, values in result.items():
        print(f"{name:12}{values['of']:9.4f}{values['against']:9.4f}{values['difference']:+12.4f}"
              f"  [{values['low']:+.4f}, {values['high']:+.4f}]")


if __name__ == "__main__":
    main()
