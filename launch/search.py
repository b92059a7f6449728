#!/usr/bin/env python3
"""Runs a list of training configurations and logs each with its validation figures.

  launch/search.py QUEUE --base configs/beauty/semantic_ids.yaml --log docs/results/search.jsonl

QUEUE has one JSON object per line; lines may be added while the search runs:

  {"name": "levels-1024-512", "stage": "levels", "hypothesis": "...", "set": {"tokenizer.levels": [1024, 512]}}

`set` is laid over --base; "base" in a line, a path from the repository's root, replaces --base. Every run
builds its tokenizer (once per tokenizer configuration), trains, and evaluates its best checkpoint on the
*validation* split; the test split is never touched. Appended to the log: the line itself with its base, recall
and NDCG with the number of users, the step, and the minutes. A name that the log has is not run again. The exit
status is 1 if a run failed.
"""
import argparse
import concurrent.futures
import json
import sys
import threading
import time
from pathlib import Path

from experiment import METRICS, ROOT, Experiments


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", type=Path, help="configurations, JSON lines")
    parser.add_argument("--base", type=Path, help="configuration that the queue's lines change")
    parser.add_argument("--log", type=Path, required=True, help="results, JSON lines")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/search", help="folder of the runs")
    parser.add_argument("--bin", type=Path, default=ROOT / "build/cpu/bin", help="folder of the programs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--ranks", type=int, default=2, help="MPI ranks of a run, with a thread each")
    parser.add_argument("--beam", type=int, default=20, help="beams of the validation")
    parser.add_argument("--wait", action="store_true", help="wait for more lines when the queue is done")
    arguments = parser.parse_args()
    if arguments.base and not arguments.base.is_file():
        parser.error(f"--base {arguments.base} is not there")
    if not arguments.base and (job := next((job for job in read_lines(arguments.queue) if "base" not in job), None)):
        parser.error(f"{job['name']} has no base, and there is no --base")
    arguments.base = str(arguments.base.resolve()).removeprefix(f"{ROOT}/") if arguments.base else None
    arguments.runs, arguments.bin = arguments.runs.resolve(), arguments.bin.resolve()
    return arguments


def read_lines(path):
    """What the lines hold; a last line that is not yet written to its end is left out."""
    *lines, last = path.read_text().split("\n") if path.exists() else [""]
    values = [json.loads(line) for line in lines if line.strip()]
    try:
        values.append(json.loads(last))
    except json.JSONDecodeError:
        pass
    return values


class Search:
    def __init__(self, arguments):
        self.arguments = arguments
        self.experiments = Experiments(arguments.runs, arguments.ranks, programs=arguments.bin)
        self.log = threading.Lock()

    def run(self, job):
        job = {**job, "base": job.get("base", self.arguments.base)}
        if not job["base"] or not (ROOT / job["base"]).is_file():
            raise RuntimeError(f"{job['name']}: its base, {job['base']}, is not there")
        evaluation = {"evaluation.beam_size": self.arguments.beam, "evaluation.baselines": False,
                      "evaluation.bootstrap_samples": 10}
        result = self.experiments.run(job["name"], job["base"], job["set"], "validation", evaluation)
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
        """How many runs failed."""
        started, running, failed = set(), set(), 0
        with concurrent.futures.ThreadPoolExecutor(self.arguments.jobs) as pool:
            while True:
                while len(running) < self.arguments.jobs and (job := self.next_job(started)):
                    started.add(job["name"])
                    running.add(pool.submit(self.run, job))
                if not running and not self.arguments.wait:
                    return failed
                done, running = concurrent.futures.wait(running, timeout=5, return_when="FIRST_COMPLETED")
                for future in done:
                    if error := future.exception():
                        print(error, flush=True)
                        failed += 1
                if not running:
                    time.sleep(2)


if __name__ == "__main__":
    sys.exit(1 if Search(parse_arguments()).main() else 0)
