#!/usr/bin/env python3
"""Recomputes recall@K and NDCG@K from a predictions file and nothing else of Mirabelle's.

    mirabelle-evaluate ... --predictions predictions.jsonl
    data_tools/recompute_metrics.py predictions.jsonl [--top-k 5 10] [--sequences DIR/sequences.txt]

A line of the file is {"user": 17, "target": 4, "items": [...], "scores": [...]}, best item first;
with several targets, "targets": [...]. With --sequences (a data set folder's file, leave-one-out)
the targets are also compared with the last item of each user's line, and no item of the history may
be recommended.
"""
import argparse
import json
import math


def figures(items, targets, k):
    """Recall and NDCG of one list (Jarvelin & Kekalainen 2002, binary gains)."""
    hits = [rank for rank, item in enumerate(items[:k]) if item in targets]
    gain = sum(1 / math.log2(rank + 2) for rank in hits)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(targets))))
    return len(hits) / len(targets), gain / ideal


def read_histories(path):
    with open(path) as lines:
        rows = (list(map(int, line.split())) for line in lines)
        return {row[0]: row[1:] for row in rows}


def check_against(histories, line, targets):
    history = histories[line["user"]]
    if targets != {history[-1]}:
        raise SystemExit(f"user {line['user']}: target {targets}, the file says {history[-1]}")
    repeated = set(history[:-1]) & set(line["items"])
    if repeated:
        raise SystemExit(f"user {line['user']}: recommends {repeated} of the history")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions")
    parser.add_argument("--top-k", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--sequences")
    arguments = parser.parse_args()
    histories = read_histories(arguments.sequences) if arguments.sequences else None

    users = 0
    sums = {k: [0.0, 0.0] for k in arguments.top_k}
    with open(arguments.predictions) as lines:
        for line in map(json.loads, lines):
            targets = set(line["targets"] if "targets" in line else [line["target"]])
            if line["scores"] != sorted(line["scores"], reverse=True):
                raise SystemExit(f"user {line['user']}: the scores do not descend")
            if len(set(line["items"])) != len(line["items"]):
                raise SystemExit(f"user {line['user']}: an item comes twice")
            if histories:
                check_against(histories, line, targets)
            for k, of_k in sums.items():
                recall, ndcg = figures(line["items"], targets, k)
                of_k[0] += recall
                of_k[1] += ndcg
            users += 1
    print(f"{users} users")
    for k, (recall, ndcg) in sums.items():
        print(f"recall@{k} {recall / users:.6f}  ndcg@{k} {ndcg / users:.6f}")


if __name__ == "__main__":
    main()
