#!/usr/bin/env python3
"""Runs a list of training configurations and logs each with its validation figures.

  launch/search.py QUEUE --base configs/beauty/semantic_ids.yaml --log docs/results/search.jsonl

QUEUE has one JSON object per line; lines may be added while the search runs:

  {"name": "levels-1024-512", "stage": "levels", "hypothesis": "...", "set": {"tokenizer.levels": [1024, 512]}}

`set` is laid over --base; "base" in a line replaces --base. Every run builds its tokenizer (once per
tokenizer configuration), trains, and evaluates its best checkpoint on the *validation* split; the test
split is never touched. Appended to the log: the line itself, recall and NDCG with the number of users,
the step, and the minutes. A name that the log has is not run again.
"""
import argparse
import concurrent.futures
import json
import threading
import time
from pathlib import Path

from experiment import METRICS, ROOT, Experiments


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", type=Path, help="configurations, JSON lines")
    parser.add_argument("--base", default="", help="configuration that the queue's lines change")
    parser.add_argument("--log", type=Path, required=True, help="results, JSON lines")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="folder of the runs")
    parser.add_argument("--bin", type=Path, default=ROOT / "build/cpu/bin", help="folder of the programs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--ranks", type=int, default=2, help="MPI ranks of a run, with a thread each")
    parser.add_argument("--beam", type=int, default=20, help="beams of the validation")
    parser.add_argument("--wait", action="store_true", help="wait for more lines when the queue is done")
    return parser.parse_args()


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


class Search:
    def __init__(self, arguments):
        self.arguments = arguments
        self.experiments = Experiments(arguments.runs, arguments.ranks, programs=arguments.bin)
        self.log = threading.Lock()

    def run(self, job):
        evaluation = {"evaluation.beam_size": self.arguments.beam, "evaluation.baselines": False,
                      "evaluation.bootstrap_samples": 10}
        result = self.experiments.run(job["name"], job.get("base", self.arguments.base), job["set"], "validation",
                                      evaluation)
        metrics = {name: round(result[name], 5) for name in METRICS}
        line = {**job, "dataset": result["dataset"], "split_hash": result["split_hash"][:12],
                "split": result["split"], "users": result["users"], "beam": result["beam_size"], **metrics,
                "step": result["checkpoint_step"], "minutes": round(result["minutes"], 1)}
        with self.log, open(self.arguments.log, "a") as log:
            log.write(json.dumps(line) + "\n")
        print(f"{job['name']:40} {metrics} {line['minutes']} min", flush=True)

    def next_job(self, started):
        done = {line["name"] for line in read_lines(self.arguments.log)}
        for job in read_lines(self.arguments.queue):
            if job["name"] not in done | started:
                return job
        return None

    def main(self):
        started, running = set(), set()
        with concurrent.futures.ThreadPoolExecutor(self.arguments.jobs) as pool:
            while True:
                while len(running) < self.arguments.jobs and (job := self.next_job(started)):
                    started.add(job["name"])
                    running.add(pool.submit(self.run, job))
                if not running and not self.arguments.wait:
                    return
                done, running = concurrent.futures.wait(running, timeout=5, return_when="FIRST_COMPLETED")
                for future in done:
                    if error := future.exception():
                        print(error, flush=True)
                if not running:
                    time.sleep(2)


if __name__ == "__main__":
    Search(parse_arguments()).main()
