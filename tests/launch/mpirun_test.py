"""What mpirun.sh tells mpirun, and how it passes signals on, with a stub of mpirun."""
import os
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "launch/mpirun.sh"
STUB = r"""#!/bin/bash
trap 'echo USR1 >> signals; [[ $(wc -l < signals) -lt 2 ]] || exit 75' USR1
echo "OMP_NUM_THREADS=$OMP_NUM_THREADS $*" > arguments
[[ $* != *read* ]] || cat > input
[[ $* != *fail* ]] || exit 3
[[ $* != *killed* ]] || exit 137
while [[ $* == *wait* ]]; do sleep 0.05; done
[[ $* != *lose* ]] || { sleep 2 & sleep 60 > /dev/null 2>&1 & wait; }
"""


class MpirunTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.executable("mpirun", STUB)

    def executable(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def start(self, *arguments, cores=8, environment={}, **options):
        self.executable("nproc", f"#!/bin/sh\necho ${{OMP_NUM_THREADS:-{cores}}}\n")
        inherited = {key: value for key, value in os.environ.items()
                     if not key.startswith(("SLURM_", "OMP_", "LD_LIBRARY_PATH"))}
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.Popen([SCRIPT, *arguments], cwd=self.folder,
                                env={**inherited, "PATH": path, **environment}, **options)

    def arguments(self, *arguments, **options):
        self.assertEqual(self.start(*arguments, **options).wait(20), 0)
        return (self.folder / "arguments").read_text().strip()

    def test_ranks_share_the_cores(self):
        self.assertRegex(self.arguments("2", "program", "--help"),
                         "^OMP_NUM_THREADS=4 -q --use-hwthread-cpus -n 2 .*--bind-to .* program --help$")
        self.assertIn("OMP_NUM_THREADS=2 ", self.arguments("3", "program"))
        self.assertNotIn("oversubscribe", self.arguments("8", "program"))

    def test_threads_can_be_set(self):
        line = self.arguments("3", "program", environment={"OMP_NUM_THREADS": "5"})
        self.assertIn("OMP_NUM_THREADS=5 ", line)
        self.assertNotIn("oversubscribe", line)  # of cores there are eight all the same

    def test_more_ranks_than_cores_yield_to_each_other(self):
        line = self.arguments("4", "program", cores=2)
        self.assertEqual(line, "OMP_NUM_THREADS=1 -q --use-hwthread-cpus -n 4 --bind-to none --oversubscribe --mca "
                               "mpi_yield_when_idle 1 program")

    def test_hosts_share_the_ranks(self):
        (self.folder / "hosts").write_text("# ours\nnode1 slots=2\n\n  node2 slots=2\n")
        line = self.arguments("--hosts", "hosts", "4", "program", cores=4)
        self.assertRegex(line, "^OMP_NUM_THREADS=2 -q --use-hwthread-cpus --hostfile hosts --leave-session-attached -x PATH -x OMP_NUM_THREADS "
                               "-n 4 --bind-to .* program$")
        line = self.arguments("--hosts", "hosts", "5", "program", cores=6,
                              environment={"LD_LIBRARY_PATH": "/libraries"})
        self.assertIn("OMP_NUM_THREADS=2 ", line)  # three on the first
        self.assertIn("-x LD_LIBRARY_PATH", line)

    def test_hosts_of_a_slurm_job_share_the_ranks(self):
        line = self.arguments("4", "program", environment={"SLURM_JOB_NUM_NODES": "2"})
        self.assertIn("OMP_NUM_THREADS=4 ", line)

    def test_refuses_what_makes_no_sense(self):
        (self.folder / "empty").write_text("# nobody\n")
        for arguments in ([], ["2"], ["0", "program"], ["two", "program"], ["--hosts", "hosts", "2", "program"],
                          ["--hosts", "empty", "2", "program"]):
            job = self.start(*arguments, stderr=subprocess.PIPE, text=True)
            self.assertIn("usage: launch/mpirun.sh", job.communicate(timeout=20)[1])
            self.assertEqual(job.returncode, 2, arguments)

    def test_passes_on_input_and_status(self):
        job = self.start("1", "read", stdin=subprocess.PIPE, text=True)
        job.communicate("a line\n", timeout=20)
        self.assertEqual((self.folder / "input").read_text(), "a line\n")
        self.assertEqual(self.start("1", "fail").wait(20), 3)

    def test_says_that_a_rank_was_killed(self):
        job = self.start("1", "killed", stderr=subprocess.PIPE, text=True)
        self.assertIn("mpirun.sh: SIGKILL ended a rank", job.communicate(timeout=20)[1])
        self.assertEqual(job.returncode, 137)

    def test_asks_the_ranks_to_stop_and_has_their_status(self):
        for first, second in ((signal.SIGTERM, signal.SIGUSR1), (signal.SIGUSR1, signal.SIGTERM)):
            (self.folder / "signals").write_text("")
            (self.folder / "arguments").unlink(missing_ok=True)
            job = self.start("1", "wait")
            self.wait_for(lambda: (self.folder / "arguments").exists())
            job.send_signal(first)
            self.wait_for(lambda: (self.folder / "signals").read_text() == "USR1\n")
            self.assertIsNone(job.poll())  # waits for what they do about it
            job.send_signal(second)
            self.assertEqual(job.wait(20), 75)

    def test_ends_without_a_host_that_is_lost(self):
        start = time.monotonic()
        job = self.start("2", "lose", stderr=subprocess.PIPE, text=True)
        said = job.communicate(timeout=60)[1]
        self.assertEqual(job.returncode, 128 + signal.SIGKILL)
        self.assertIn("mpirun.sh: a part of the job has ended, a host does not answer", said)
        self.assertNotIn("ended a rank", said)
        self.assertGreater(time.monotonic() - start, 20)

    def wait_for(self, condition):
        end = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)


if __name__ == "__main__":
    unittest.main()
