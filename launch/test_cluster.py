#!/usr/bin/env python3
"""Faults of clusters, on hosts of a virtual network and in a local Slurm: what comes of them.

    launch/test_cluster.sh [--only WORD] [--write]

Every case is a training run in which something happens, and mostly a second one that goes on; what
is finished must have the bits of an undisturbed run on one rank (kill_test.py says which). Prints a
table, fault -> what the user sees -> lost steps -> seconds until the job ended, and at last "N
passed, M failed". --only runs the cases whose names have the word; --write puts the table into
docs/faults.md and docs/faults.json. test_cluster.sh installs what is missing, and builds.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import kill_test
from kill_test import EXIT_STOPPED, FAULT_TIMEOUT_SECONDS, ROOT, Failure, checkpoints
from virtual_cluster import Hosts, LocalSlurm, run

PROGRAMS = ROOT / "build/cpu/bin"
TOO_LONG_SECONDS = 120  # for anything
Row = collections.namedtuple("Row", "fault seen lost_steps seconds")
EXPLANATION = f"""# Faults, and what comes of them

Written by `launch/test_cluster.sh --write` from a real run, which is also a test: 4 ranks on 3 hosts of
a virtual network, or jobs of a Slurm with 2 nodes, all on one machine. A checkpoint was written every
second step; `parallel.fault_timeout_seconds` was {FAULT_TIMEOUT_SECONDS} (the default is 600). *Lost* are the steps that the
next start had to repeat. Every run that had begun was then started again, went on from its newest
checkpoint, and when it was finished (that of the time limit was not waited for) had the losses, weights
and moments of an undisturbed run on one rank, bit by bit.

"""


class Job:
    """A command with its output in a log; ends with all that it has started."""

    def __init__(self, command, folder, environment={}):
        self.log_file = pathlib.Path(tempfile.mkstemp(suffix=".log", dir=folder)[1])
        with open(self.log_file, "w") as log:
            self.process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=log,
                                            stderr=subprocess.STDOUT, start_new_session=True,
                                            env={**os.environ, **environment})

    def log(self):
        return self.log_file.read_text(errors="replace")

    def is_running(self):
        return self.process.poll() is None

    def end(self, seconds=TOO_LONG_SECONDS):
        """Waits for the end. Returns the exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"the job has not ended after {seconds} s\n{self.log()}") from None
        finally:
            if self.is_running():
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def newest_step(output):
    names = list(checkpoints(output))
    return int(names[-1].removeprefix("step-")) if names else 0


def steps_done(output):
    """By the metrics, which are written after every step."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return max((line["step"] for line in lines if "loss" in line), default=0)


def wait_for(condition, what, job=None, seconds=TOO_LONG_SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        if job and not job.is_running():
            raise Failure(f"the job ended before {what}\n{job.log()}")
        if time.monotonic() > end:
            raise Failure(f"waited {seconds} s for {what}\n{job.log() if job else ''}")
        time.sleep(0.02)


def wanted(condition, what, log):
    if not condition:
        raise Failure(f"wanted {what}\n{log}")


class ClusterTest(kill_test.Test):
    def __init__(self, folder, hosts):
        super().__init__(folder, PROGRAMS)
        self.hosts, self.slurm = hosts, None
        self.cases = 0

    def new_output(self):
        self.cases += 1
        return self.folder / f"case-{self.cases}"

    def arguments(self, output, *more):
        return ["--config", "kill.yaml", "--set", f"training.output={output}", *more]

    def start(self, output, *more):
        """Four ranks on three hosts."""
        return Job([ROOT / "launch/mpirun.sh", "--hosts", self.hosts.file([2, 1, 1]), 4,
                    PROGRAMS / "mirabelle-train", *self.arguments(output, *more), "--set",
                    "parallel.tensor_parallel_size=2", "--set", "parallel.zero_stage=2"],
                   self.folder, self.hosts.environment())

    def seen(self, log, pattern):
        """The line that tells the user, without what is of this run only."""
        found = re.search(f"^.*{pattern}.*$", log, re.MULTILINE)
        wanted(found, f"a line with '{pattern}'", log)
        line = re.sub(r"^\d\d:\d\d:\d\d \w+ ", "", found[0])
        line = line.replace(f"{self.folder}/", "").replace(str(self.folder), "runs")
        return re.sub(r"\bcase-\d+(/run)?\b", "runs/mine", line)

    def resumed(self, output, step):
        return f"resume from {output}/checkpoints/step-{step:08}"

    def finish(self, output, start):
        """Goes on until the end, with the bits of the undisturbed run."""
        before = newest_step(output)
        job = start()
        wanted(job.end() == 0, "the next start to finish", job.log())
        wanted(before == 0 or self.resumed(output, before) in job.log(),
               f"to go on from step {before}", job.log())
        self.check_finished(output)

    def break_and_finish(self, fault, inflict, pattern, mend=lambda: None, status=None,
                         limit=kill_test.END_SECONDS, output=None, start=None):
        """Lets something happen in a run after step 10."""
        output = output or self.new_output()
        start = start or (lambda: self.start(output))
        job = start()
        wait_for(lambda: newest_step(output) >= 10, "step 10", job)
        moment = time.time()
        inflict(job)
        ended = job.end(limit)
        seconds = time.time() - moment
        wanted(ended == status if status is not None else ended != 0,
               f"exit status {status or 'not 0'} and not {ended}", job.log())
        lost = steps_done(output) - newest_step(output)
        # The next checkpoint waits for the one that is being written, so two of them are at stake.
        at_most = 2 * 2  # a checkpoint every second step
        wanted(0 <= lost <= at_most, f"to lose at most {at_most} steps and not {lost}", job.log())
        self.check_checkpoints(output)
        mend()
        self.finish(output, start)
        return Row(fault, self.seen(job.log(), pattern), lost, seconds)

    def refused(self, fault, job, pattern, output=None):
        """Before anything is trained."""
        moment = time.time()
        status = job.end()
        wanted(status == 2, f"exit status 2 and not {status}", job.log())
        wanted(not output or not list(output.glob("*")), "nothing to be written", job.log())
        return Row(fault, self.seen(job.log(), pattern), 0, time.time() - moment)

    def rank_on(self, host):
        for pid in self.hosts.processes(host):
            if pathlib.Path(f"/proc/{pid}/comm").read_text() == "mirabelle-train\n":
                return pid
        raise Failure(f"no rank on {host}")

    # --- on the hosts ---

    def hosts_equal_one_rank(self):
        output = self.new_output()
        moment = time.time()
        job = self.start(output)
        wanted(job.end() == 0, "exit status 0", job.log())
        for host in self.hosts.names:
            wanted(host in job.log(), f"{host} among the ranks' places", job.log())
        self.check_finished(output)
        return Row("none", self.seen(job.log(), "stopped by max_steps"), 0, time.time() - moment)

    def link_goes_down(self):
        return self.break_and_finish(
            "a host's link goes down", lambda job: self.hosts.take_down("plum2"),
            f"waited {FAULT_TIMEOUT_SECONDS} s in", limit=FAULT_TIMEOUT_SECONDS + 40,
            mend=lambda: self.hosts.bring_up("plum2"))

    def rank_is_killed(self):
        return self.break_and_finish(
            "a rank is killed (SIGKILL)",
            lambda job: os.kill(self.rank_on("plum2"), signal.SIGKILL), "SIGKILL ended a rank")

    def rank_stalls(self):
        return self.break_and_finish(
            "a rank stalls (SIGSTOP)",
            lambda job: os.kill(self.rank_on("plum3"), signal.SIGSTOP),
            f"waited {FAULT_TIMEOUT_SECONDS} s in",
            limit=FAULT_TIMEOUT_SECONDS + kill_test.END_SECONDS)

    def launcher_is_asked_to_stop(self):
        return self.break_and_finish(
            "SIGTERM to launch/mpirun.sh", lambda job: job.process.send_signal(signal.SIGTERM),
            "started again, the run goes on", status=EXIT_STOPPED)

    def another_build_on_a_host(self):
        older, output = self.folder / "older", self.new_output()
        older.write_bytes((PROGRAMS / "mirabelle-train").read_bytes() + b"older")
        older.chmod(0o755)
        self.hosts.before_ranks("plum3", f"mount --bind {older} {PROGRAMS}/mirabelle-train\n")
        try:
            return self.refused("another build on one host", self.start(output),
                                "rank 3 on plum3 has another program", output)
        finally:
            self.hosts.before_ranks("plum3", "")

    def output_is_not_shared(self):
        output = self.new_output()
        output.mkdir()
        self.hosts.before_ranks("plum3", f"mount -t tmpfs tmpfs {output}\n")
        try:
            return self.refused("training.output is on each host's own disk", self.start(output),
                                "rank 3 on plum3 does not see what rank 0 writes", output)
        finally:
            self.hosts.before_ranks("plum3", "")

    # --- a small disk ---

    def start_here(self, output):
        return Job([ROOT / "launch/mpirun.sh", 2, PROGRAMS / "mirabelle-train",
                    *self.arguments(output)], self.folder)

    def disk_is_too_small(self):
        with SmallDisk(self.new_output(), "1M") as disk:
            return self.refused("too small a disk for the checkpoints", self.start_here(disk / "run"),
                                "1.0 MiB free for training.output", disk / "run")

    def disk_fills_up(self):
        with SmallDisk(self.new_output(), "16M") as disk:
            filler = disk / "filler"

            def fill(_):
                with open(filler, "wb") as file:
                    try:
                        while True:
                            os.write(file.fileno(), bytes(4096))
                    except OSError:
                        pass  # full

            output = disk / "run"
            return self.break_and_finish(
                "the disk of the checkpoints fills up", fill, "mirabelle-train: rank",
                mend=filler.unlink, output=output, start=lambda: self.start_here(output))

    # --- in Slurm ---

    def submit(self, output, *options, steps=60):
        return self.slurm.submit(
            *options, ROOT / "launch/train.sbatch", *self.arguments(
                output, "--set", f"training.max_steps={steps}"), cwd=self.folder)

    def slurm_log(self, number):
        path = self.folder / f"slurm-{number}.out"
        return path.read_text() if path.exists() else ""

    def wait_in_slurm(self, number, condition, what, seconds=TOO_LONG_SECONDS):
        end = time.monotonic() + seconds
        while not condition():
            state = self.slurm.job(number)
            if state.get("JobState") in ("FAILED", "COMPLETED", "CANCELLED", "TIMEOUT") or \
                    time.monotonic() > end:
                raise Failure(f"wanted {what}, the job is {state}\n{self.slurm_log(number)}")
            time.sleep(0.1)

    def stopped_job(self, output, inflict, *options, steps=60, seconds=TOO_LONG_SECONDS):
        """A job that is stopped and asks to be started again: its log and how long that took."""
        first = newest_step(output) + 10
        number = self.submit(output, *options, steps=steps)
        self.wait_in_slurm(number, lambda: newest_step(output) >= first, f"step {first}")
        inflict(number)
        told = "stops as soon as it can"  # the first words of a rank that the signal has reached
        self.wait_in_slurm(number, lambda: told in self.slurm_log(number), told, seconds)
        moment = time.time()
        self.wait_in_slurm(number, lambda: self.slurm.job(number).get("Restarts") == "1",
                           "the job to be requeued")
        ended = time.time() - moment
        self.slurm.query("scancel", number)  # this Slurm starts it again only after minutes
        log = self.slurm_log(number)
        lost = steps_done(output) - newest_step(output)
        wanted(lost == 0, f"to lose no step and not {lost}", log)
        return log, ended

    def finish_in_slurm(self, output, steps=60):
        before = newest_step(output)
        number = self.submit(output, "--nodes=1", steps=steps)
        end = time.monotonic() + TOO_LONG_SECONDS
        while self.slurm.job(number).get("JobState") != "COMPLETED" and time.monotonic() < end:
            time.sleep(0.2)
        wanted(self.resumed(output, before) in self.slurm_log(number),
               f"a second job to go on from step {before}", self.slurm_log(number))
        self.check_finished(output)

    def slurm_signal(self):
        output = self.new_output()
        log, seconds = self.stopped_job(
            output, lambda number: self.slurm.query("scancel", "--batch", "--signal=USR1", number),
            "--nodes=2", "--time=5")
        self.check_checkpoints(output)
        self.finish_in_slurm(output)
        return Row("`scancel --batch --signal=USR1`", self.seen(log, "started again, the run goes on"), 0,
                   seconds)

    def slurm_time_limit(self):
        output, many = self.new_output(), 100000
        log, seconds = self.stopped_job(output, lambda number: None, "--nodes=2", "--time=1",
                                        "--signal=B:USR1@30", steps=many)
        before = newest_step(output)
        self.stopped_job(output, lambda number: self.slurm.query(
            "scancel", "--batch", "--signal=USR1", number), "--nodes=1", steps=many)
        wanted(newest_step(output) > before, f"a second job to go on from step {before}", log)
        return Row("Slurm's time limit comes near (`--signal=B:USR1@30`)",
                   self.seen(log, "started again, the run goes on"), 0, seconds)

    def slurm_without_mpirun(self):
        output = self.new_output()
        moment = time.time()
        job = Job(["srun", "--mpi=pmix", "--nodes=1", "--ntasks=2", PROGRAMS / "mirabelle-train",
                   *self.arguments(output)], self.folder, self.slurm.environment())
        wanted(job.end() == 0, "exit status 0", job.log())
        wanted("world (2)" in job.log(), "two ranks that know of each other", job.log())
        self.check_finished(output)
        return Row("none (`srun --mpi=pmix`)", self.seen(job.log(), "stopped by max_steps"), 0,
                   time.time() - moment)

    def slurm_stages(self):
        """The other sbatch files: what they write is what the programs write without them."""
        moment = time.time()
        self.run("mirabelle-evaluate", "--set", f"evaluation.checkpoint={self.whole}", "--json",
                 "here.json")
        scripts = [("tokenizer", ["--config", "kill.yaml", "--set", "tokenizer.file=slurm.h5"]),
                   ("evaluate", ["--set", f"evaluation.checkpoint={self.whole}", "--json",
                                 "slurm.json"])]
        for name, arguments in scripts:
            number = self.slurm.submit("--nodes=2", "--wait", ROOT / f"launch/{name}.sbatch",
                                       *arguments, cwd=self.folder)
            state = self.slurm.job(number)
            wanted(state.get("JobState") == "COMPLETED", "the job to complete",
                   self.slurm_log(number))
        here, there = (json.loads((self.folder / name).read_text())
                       for name in ("here.json", "slurm.json"))
        wanted(there["ranks"] == 4 and here["recall@10"] == there["recall@10"],
               f"recall@10 {here['recall@10']} of four ranks", there)
        wanted((self.folder / "slurm.h5").exists(), "a tokenizer", "")
        return Row("none (tokenizer.sbatch, evaluate.sbatch)", "the results, on 4 ranks of 2 nodes",
                   0, time.time() - moment)

    def all_cases(self):
        on_hosts = [self.hosts_equal_one_rank, self.launcher_is_asked_to_stop, self.rank_is_killed,
                    self.rank_stalls, self.link_goes_down, self.another_build_on_a_host,
                    self.output_is_not_shared]
        here = [self.disk_is_too_small, self.disk_fills_up]
        in_slurm = [self.slurm_signal, self.slurm_time_limit, self.slurm_without_mpirun,
                    self.slurm_stages]
        return on_hosts + here, in_slurm


class SmallDisk:
    def __init__(self, folder, size):
        self.folder, self.size = folder, size

    def __enter__(self):
        self.folder.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", self.folder)
        return self.folder

    def __exit__(self, *_):
        run("umount", "--lazy", self.folder)


def run_cases(cases, only, rows):
    """Returns how many failed."""
    failed = 0
    for case in cases:
        if only not in case.__name__:
            continue
        try:
            row = case()
            rows.append(row)
            print(f"ok      {case.__name__:28} {row.seconds:5.1f} s, lost {row.lost_steps}: "
                  f"{row.seen}", flush=True)
        except (Failure, OSError, subprocess.SubprocessError, TimeoutError) as failure:
            failed += 1
            print(f"FAILED  {case.__name__}: {failure}", flush=True)
    return failed


def write(rows):
    table = ["| fault | the user sees | lost steps | seconds until the job ended |",
             "| --- | --- | --- | --- |"]
    table += [f"| {row.fault} | `{row.seen}` | {row.lost_steps} | {row.seconds:.1f} |"
              for row in rows]
    (ROOT / "docs/faults.md").write_text(EXPLANATION + "\n".join(table) + "\n")
    facts = [{**row._asdict(), "seconds": round(row.seconds, 1)} for row in rows]
    (ROOT / "docs/faults.json").write_text(json.dumps(facts, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.write and arguments.only:
        parser.error("--write wants all cases")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # hosts and daemons are removed

    rows = []
    with tempfile.TemporaryDirectory(prefix="mirabelle-cluster-") as name:
        folder = pathlib.Path(name)
        with Hosts(folder, 3) as hosts:
            test = ClusterTest(folder, hosts)
            try:
                test.prepare()
            except Failure as failure:
                print(f"{failure}\n0 passed, 1 failed")
                return 1
            on_hosts, in_slurm = test.all_cases()
            failed = run_cases(on_hosts, arguments.only, rows)
        if any(arguments.only in case.__name__ for case in in_slurm):
            # Both nodes are this machine, so shared memory would mix their ranks up.
            os.environ.update(OMP_NUM_THREADS="1", OMPI_MCA_pml="ob1", OMPI_MCA_btl="tcp,self",
                              OMPI_MCA_mpi_yield_when_idle="1")
            with LocalSlurm(folder / "slurm") as test.slurm:
                failed += run_cases(in_slurm, arguments.only, rows)
    if arguments.write and not failed:
        write(rows)
    print(f"{len(rows)} passed, {failed} failed")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
