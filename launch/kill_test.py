#!/usr/bin/env python3
"""Kills ranks of training runs at random moments, and checks that nothing is lost by it.

    launch/kill_test.py [--kills 200] [--stalls 2] [--signals 20] [--seed 0] [--bin build/cpu/bin]

A run is killed and started again, on a random layout of ranks each time, until it is finished; then
another begins, until there were enough kills. After every kill the job must end by itself, its
surviving ranks must say what they were doing, and every checkpoint must hold the same bits as that
step's of an undisturbed run on one rank. A restart must go on from the newest checkpoint. A
finished run must have the losses, weights and moments of the undisturbed one, bit by bit. A stall
is a rank that stops instead (SIGSTOP): the others must notice it. A signal (SIGTERM or SIGUSR1 to a
rank, SIGUSR1 to mpirun) must end the job with exit status 75 and a checkpoint of its last step, with
no step lost.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FAULT_TIMEOUT_SECONDS = 4
EXIT_STOPPED = 75
END_SECONDS = 20  # within which a job ends after a kill
CONFIG = f"""
data: {{corpus: corpus, history_length: 8}}
tokenizer: {{file: tokenizer.h5, levels: [12, 12]}}
model: {{hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_hidden_size: 64,
        dropout: 0.1}}
training: {{max_steps: 60, warmup_steps: 5, learning_rate: 8.0e-3, reproducible: true,
           micro_batch_tokens: 128, global_batch_tokens: 512, max_sequence_tokens: 60,
           log_every_steps: 1, validation_every_steps: 15, validation_users: 50,
           checkpoint_every_steps: 2, keep_checkpoints: 2, sentinel_every_steps: 5}}
parallel: {{fault_timeout_seconds: {FAULT_TIMEOUT_SECONDS}}}
"""


class Failure(Exception):
    pass


class Layout(collections.namedtuple("Layout", "tensor data zero_stage sequence_parallel")):
    @staticmethod
    def draw():
        tensor, data = random.choice([(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
        return Layout(tensor, data, random.randrange(3), tensor > 1 and random.random() < 0.5)

    @property
    def num_ranks(self):
        return self.tensor * self.data

    def arguments(self):
        return ["--set", f"parallel.tensor_parallel_size={self.tensor}",
                "--set", f"parallel.zero_stage={self.zero_stage}",
                "--set", f"parallel.sequence_parallel={str(self.sequence_parallel).lower()}"]

    def __str__(self):
        return (f"tensor {self.tensor}{'s' if self.sequence_parallel else ' '} "
                f"x data {self.data}, ZeRO {self.zero_stage}")


def checkpoints(output):
    """The finished ones by name, in order."""
    return {path.name: path for path in sorted((output / "checkpoints").glob("step-*"))
            if path.suffix != ".partial"}


def catches(pid, number):
    """Whether the process handles the signal; true if it has gone."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    mask = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return not mask or int(mask[1], 16) >> (number - 1) & 1 == 1


def children(pid):
    """IDs of the processes that it has started."""
    try:
        return map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except OSError:
        return []  # has ended


class Job:
    """mirabelle-train on a layout, with its output in a log."""

    def __init__(self, programs, output, layout, *arguments):
        self.layout, self.output, self.log_file = layout, output, output.with_suffix(".log")
        self.start = time.time()
        with open(self.log_file, "w") as log:
            self.mpirun = subprocess.Popen(
                [ROOT / "launch/mpirun.sh", str(layout.num_ranks), programs / "mirabelle-train",
                 "--config", "kill.yaml", "--set", f"training.output={output.name}",
                 *layout.arguments(), *arguments],
                cwd=output.parent, stdout=log, stderr=subprocess.STDOUT)

    def is_running(self):
        return self.mpirun.poll() is None

    def log(self):
        return self.log_file.read_text(errors="replace")

    def ranks(self):
        """Process IDs by rank; waits until all are there."""
        found = {}
        while self.is_running() and len(found) < self.layout.num_ranks:
            # mpirun.sh starts mpirun, and that the ranks
            for pid in [rank for mpirun in children(self.mpirun.pid) for rank in children(mpirun)]:
                try:
                    environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
                except OSError:
                    continue  # has ended
                rank = re.search(rb"\0OMPI_COMM_WORLD_RANK=(\d+)\0", environment)
                if rank:
                    found[int(rank[1])] = pid
            time.sleep(0.001)
        return found

    def wait_for_new(self, is_wanted):
        """Until there is a folder in checkpoints/ that this job made, or the job has ended."""
        while self.is_running():
            try:
                if any(is_wanted(path) and path.stat().st_mtime > self.start
                       for path in (self.output / "checkpoints").glob("step-*")):
                    return
            except OSError:
                pass  # has gone meanwhile
            time.sleep(0.001)

    def end(self, seconds):
        """Waits so long for the end, and ends the job if it does not. Returns the exit status."""
        try:
            return self.mpirun.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in [*self.ranks().values(), self.mpirun.pid]:
                os.kill(pid, signal.SIGKILL)
            self.mpirun.wait()
            raise Failure(f"the job has not ended after {seconds} s") from None


class Test:
    def __init__(self, folder, programs):
        self.folder, self.programs = folder, programs
        self.faults, self.slowest_end, self.finished = 0, 0.0, 0

    def run(self, program, *arguments):
        subprocess.run([self.programs / program, *arguments], cwd=self.folder, check=True,
                       stdout=subprocess.DEVNULL)

    def prepare(self):
        (self.folder / "kill.yaml").write_text(CONFIG)
        self.run("mirabelle-data", "synth", "--output", "corpus", "--set",
                 "synthetic.num_users=300", "--set", "synthetic.num_items=200", "--set",
                 "synthetic.branching=[4,4]")
        self.run("mirabelle-tokenizer-build", "--config", "kill.yaml")
        self.whole = self.folder / "whole"
        job = Job(self.programs, self.whole, Layout(1, 1, 0, False),
                  "--set", "training.keep_checkpoints=1000",
                  "--set", "training.checkpoint_every_steps=1")
        if job.end(120) != 0:
            raise Failure("the undisturbed run failed: " + job.log())
        # a signal may leave checkpoints between those of every second step
        self.kept = sorted({*list(checkpoints(self.whole))[-1:], self.best(self.whole)})
        start = time.time()
        output = self.folder / "undisturbed"
        if Job(self.programs, output, Layout(2, 2, 2, False)).end(120) != 0:
            raise Failure("the undisturbed run on four ranks failed")
        self.run_seconds = time.time() - start
        self.check_finished(output)

    def best(self, output):
        return (output / "checkpoints/best").read_text().strip()

    def metrics(self, output):
        """Without what is timing."""
        lines = []
        for text in (output / "metrics.jsonl").read_text().splitlines():
            line = json.loads(text)
            if "stopped_by" in line:
                continue
            for part in (line, line.get("validation", {})):
                for key in ("seconds", "tokens_per_second", "phase_seconds", "memory"):
                    part.pop(key, None)
            lines.append(line)
        return lines

    def state(self, checkpoint):
        state = json.loads((checkpoint / "manifest.json").read_text())["state"]
        timing = {key for key in state if "seconds" in key}
        if state["validation_is_owed"]:  # whose outcome the undisturbed run's state has
            timing |= {key for key in state if key.startswith(("best_", "validation"))}
        return {key: value for key, value in state.items() if key not in timing}

    def check_checkpoints(self, output):
        for name, path in checkpoints(output).items():
            whole = self.whole / "checkpoints" / name
            comparison = subprocess.run([self.programs / "compare_checkpoints", path, whole],
                                        stderr=subprocess.PIPE, text=True, check=False)
            if comparison.returncode != 0:
                raise Failure(f"{path}: {comparison.stderr}")
            state, wanted = self.state(path), self.state(whole)
            wanted = {key: value for key, value in wanted.items() if key in state}
            if state != wanted:
                raise Failure(f"{path}: state {state}, wanted {wanted}")

    def check_finished(self, output):
        self.check_checkpoints(output)
        if self.metrics(output) != self.metrics(self.whole):
            raise Failure(f"{output}/metrics.jsonl is not the undisturbed run's")
        names = sorted(path.name for path in (output / "checkpoints").glob("step-*"))
        if (not set(self.kept) <= set(names) or len(names) > 3 or
                self.best(output) != self.best(self.whole)):
            raise Failure(f"{output} has kept {names}, best {self.best(output)}; "
                          f"wanted {self.kept}, best {self.best(self.whole)}")
        summary, wanted = (json.loads((path / "summary.json").read_text())
                           for path in (output, self.whole))
        for key in ("train_steps", "train_tokens", "stopped_by", "final_loss", "best_step"):
            if summary[key] != wanted[key]:
                raise Failure(f"{output}/summary.json: {key} is {summary[key]}, "
                              f"wanted {wanted[key]}")

    def wait_for_moment(self, job, kind):
        if kind == "checkpoint is written":
            job.wait_for_new(lambda path: path.suffix == ".partial")
            time.sleep(random.uniform(0, 0.02))
        elif kind == "checkpoint is in place":
            job.wait_for_new(lambda path: path.suffix != ".partial")
            time.sleep(random.uniform(0, 0.005))
        else:
            time.sleep(random.uniform(0, self.run_seconds))

    def check_last_words(self, job, pids, rank, fault):
        """Of the ranks that are left, if they have begun to train and have not finished."""
        log = job.log()
        if "memory per rank" not in log or self.is_finished(job.output):
            return
        for other, pid in pids.items():
            # Open MPI ends a rank at once that was reading the memory of one that has gone.
            if other != rank and f"rank {other}: " not in log and f":{pid}] Read -1" not in log:
                raise Failure(f"rank {other} has not said what it was doing")
        if fault == signal.SIGSTOP and f"waited {FAULT_TIMEOUT_SECONDS} s in" not in log:
            raise Failure("nobody says that a rank was waited for in vain")

    def check_stop(self, job, status):
        """Status 0: it came when all was done. Before the first step there is nothing to save."""
        if status not in (0, EXIT_STOPPED):
            raise Failure(f"the exit status is {status}, wanted {EXIT_STOPPED}")
        if status == 0:
            return
        summary = json.loads((job.output / "summary.json").read_text())
        found = list(checkpoints(job.output))
        wanted = f"step-{summary['train_steps']:08}"
        if summary["stopped_by"] != "signal" or (summary["train_steps"] and found[-1] != wanted):
            raise Failure(f"after {summary} the checkpoints are {found}")

    def attempt(self, output, fault):
        """Runs the training, with a signal to one rank, or null. Returns whether it has come."""
        layout = Layout.draw()
        while fault == signal.SIGSTOP and layout.num_ranks == 1:
            layout = Layout.draw()
        before = list(checkpoints(output))
        moved_aside = len(list(output.glob("previous-*")))
        kinds = ["checkpoint is written", "checkpoint is in place"]
        is_stop = fault in (signal.SIGTERM, signal.SIGUSR1)
        if fault == signal.SIGKILL or is_stop:  # a rank that stalls before it trains is mpirun's business
            kinds = kinds[:1] * 2 + kinds[1:] + ["any time"] * 3
        kind = random.choice(kinds)
        job = Job(self.programs, output, layout)
        rank = random.randrange(layout.num_ranks)
        if fault:
            pids = job.ranks()
            self.wait_for_moment(job, kind)
            while is_stop and job.is_running() and not all(catches(pid, fault)
                                                           for pid in pids.values()):
                time.sleep(0.001)  # it is still being loaded
        came = fault and job.is_running()
        moment = time.time()
        target = pids[rank] if came else None
        if fault == signal.SIGUSR1 and random.random() < 0.5:
            target = job.mpirun.pid
        if came:
            try:
                os.kill(target, fault)
            except ProcessLookupError:
                came = False
        limit = FAULT_TIMEOUT_SECONDS if fault == signal.SIGSTOP else 0
        status = job.end(END_SECONDS + limit if came else 120)
        seconds = time.time() - moment
        after = list(checkpoints(output))
        try:
            if not came and status != 0:
                raise Failure(f"the job has failed without a {fault}")
            if came and is_stop:
                self.check_stop(job, status)
            elif came and status != 0:
                self.check_last_words(job, pids, rank, fault)
            self.check_checkpoints(output)
            if before and (len(list(output.glob("previous-*"))) > moved_aside or
                           not after or after[-1] < before[-1]):
                raise Failure(f"was not resumed from {before[-1]}")
        except Failure as failure:
            raise Failure(f"{failure}\n{layout}, rank {rank}, {kind}\n{job.log()}") from None
        if not came:
            return False
        self.faults += 1
        self.slowest_end = max(self.slowest_end, seconds)
        names = {signal.SIGSTOP: "stall", signal.SIGKILL: "kill"}
        print(f"{names.get(fault, 'stop'):5} {self.faults:3}: rank {rank} of "
              f"{layout}, {moment - job.start:5.2f} s after the start, {kind:22}; ended in "
              f"{seconds:4.1f} s, newest {after[-1] if after else '-'}", flush=True)
        return True

    @staticmethod
    def is_finished(output):
        summary = output / "summary.json"
        return summary.exists() and json.loads(summary.read_text())["finished"]

    def run_all(self, faults):
        while faults or self.finished == 0:
            output = self.folder / f"run-{self.finished + 1}"
            while not self.is_finished(output):
                if self.attempt(output, faults[0] if faults else None):
                    faults.pop(0)
            self.check_finished(output)
            shutil.rmtree(output)
            self.finished += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stalls", type=int, default=2)
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/cpu/bin")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    faults = [signal.SIGKILL] * arguments.kills + [signal.SIGSTOP] * arguments.stalls
    faults += random.choices([signal.SIGTERM, signal.SIGUSR1], k=arguments.signals)
    random.shuffle(faults)

    folder = pathlib.Path(tempfile.mkdtemp(prefix="mirabelle-kill-test-"))
    start = time.time()
    test = Test(folder, arguments.bin.resolve())
    try:
        test.prepare()
        test.run_all(faults)
    except Failure as failure:
        print(f"kill_test.py: after {test.faults} faults: {failure}\nsee {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(f"kills: {arguments.kills}, stalls: {arguments.stalls}, signals: {arguments.signals}, runs finished with the bits of the "
          f"undisturbed one: {test.finished}; a job ended at most {test.slowest_end:.1f} s after a "
          f"fault; {time.time() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
