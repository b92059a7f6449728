"""A cluster on one machine, for test_cluster.py; as root, with iproute2, slurm-wlm and munge.

Hosts: network namespaces on a bridge, each with a host name of its own, which mpirun reaches by an
agent instead of ssh. LocalSlurm: the daemons of a Slurm with two nodes, without systemd, cgroups or
a database. Both leave nothing behind when their `with` block ends.
"""
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

AGENT = r"""#!/usr/bin/env bash
# Open MPI's remote shell: agent [OPTION...] HOST COMMAND. A file rc.HOST beside it is run first.
while [[ $1 == -* ]]; do shift; done
host=$1 rc=$(dirname "$0")/rc.$1
shift
exec ip netns exec "$host" unshare --uts --mount bash -c '
  echo "$1" > /proc/sys/kernel/hostname
  [[ ! -e $2 ]] || . "$2"
  eval "$3"' agent "$host" "$rc" "$*"
"""


def run(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, text=True, timeout=60, **options)


def quietly(*command):
    """Whether it went well."""
    return subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, timeout=60,
                          stderr=subprocess.DEVNULL, check=False).returncode == 0


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.1)


class Hosts:
    PREFIX, BRIDGE, NETWORK = "plum", "plum-bridge", "10.83.46"

    def __init__(self, folder, count):
        self.folder = pathlib.Path(folder)
        self.names = [f"{self.PREFIX}{i + 1}" for i in range(count)]

    def __enter__(self):
        self.remove()  # what a killed test left
        agent = self.folder / "agent"
        agent.write_text(AGENT)
        agent.chmod(0o755)
        run("ip", "link", "add", self.BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{self.NETWORK}.254/24", "dev", self.BRIDGE)
        run("ip", "link", "set", self.BRIDGE, "up")
        for number, name in enumerate(self.names, 1):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"{name}-out", "type", "veth", "peer", "eth0", "netns", name)
            run("ip", "link", "set", f"{name}-out", "master", self.BRIDGE, "up")
            run("ip", "-n", name, "address", "add", f"{self.NETWORK}.{number}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_):
        self.remove()

    def remove(self):
        for name in self.names:
            for pid in self.processes(name):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            quietly("ip", "netns", "delete", name)
            quietly("ip", "link", "delete", f"{name}-out")
        quietly("ip", "link", "delete", self.BRIDGE)

    def processes(self, name):
        pids = subprocess.run(["ip", "netns", "pids", name], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL, check=False)
        return list(map(int, pids.stdout.split()))

    def take_down(self, name):
        run("ip", "link", "set", f"{name}-out", "down")

    def bring_up(self, name):
        """Returns when the host can be reached again."""
        run("ip", "link", "set", f"{name}-out", "up")
        probe = f"exec 3<> /dev/tcp/{self.NETWORK}.254/9"  # an answer: nobody listens there
        wait_for(lambda: "refused" in subprocess.run(
            ["ip", "netns", "exec", name, "timeout", "1", "bash", "-c", probe], text=True,
            stderr=subprocess.PIPE, check=False).stderr, 60, f"the link of {name}")

    def before_ranks(self, name, commands):
        """What the host does before it starts ranks, in a mount namespace of its own; "": nothing."""
        (self.folder / f"rc.{name}").write_text(commands)

    def file(self, slots):
        path = self.folder / "hosts"
        path.write_text("".join(f"{name} slots={n}\n" for name, n in zip(self.names, slots)))
        return path

    def environment(self):
        """With which mpirun uses this network, and only this one. All hosts share the same cores."""
        network = f"{self.NETWORK}.0/24"
        settings = {"plm_rsh_agent": self.folder / "agent", "oob_tcp_if_include": network,
                    "btl_tcp_if_include": network, "pml": "ob1", "btl": "tcp,self",
                    "mpi_yield_when_idle": 1}
        return {f"OMPI_MCA_{key}": str(value) for key, value in settings.items()}


class LocalSlurm:
    CONTROLLER_PORT, NODE_PORTS = 16821, (17021, 17022)
    DAEMONS = ("slurmctld", "slurmd-node1", "slurmd-node2")

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.conf = self.folder / "slurm.conf"
        self.munged = None

    def __enter__(self):
        self.start_munge()
        host = socket.gethostname().split(".")[0]
        (self.folder / "state").mkdir(parents=True)
        nodes = "".join(
            f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 "
            "RealMemory=2000\n" for i, port in enumerate(self.NODE_PORTS, 1))
        self.conf.write_text(f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self.CONTROLLER_PORT}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
# Neither cgroups nor a database; a node has the cores that it says, whatever the machine has.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=10
SchedulerParameters=sched_interval=1,batch_sched_delay=0
{nodes}PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
""")
        run("slurmctld", "-f", self.conf)
        for node in ("node1", "node2"):
            run("slurmd", "-f", self.conf, "-N", node)
        wait_for(lambda: self.query("sinfo", "-h", "-o", "%D %t") == "2 idle", 60,
                 "the nodes of Slurm to be idle")
        return self

    def start_munge(self):
        for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge", "/etc/munge"):
            os.makedirs(folder, exist_ok=True)
            shutil.chown(folder, "munge", "munge")
        os.chmod("/run/munge", 0o755)
        if quietly("munge", "-n"):
            return
        if not os.path.exists("/etc/munge/munge.key"):
            run("runuser", "-u", "munge", "--", "mungekey", "--create")
        self.munged = subprocess.Popen(["runuser", "-u", "munge", "--", "munged", "--foreground",
                                        "--force"], stderr=subprocess.DEVNULL)
        wait_for(lambda: quietly("munge", "-n"), 20, "munge")

    def __exit__(self, *_):
        if self.munged or self.conf.exists():
            quietly("env", f"SLURM_CONF={self.conf}", "scancel", "--user=root")
        time.sleep(1)
        for name in self.DAEMONS:
            pid_file = self.folder / f"{name}.pid"
            if pid_file.exists():
                self.end(int(pid_file.read_text()))
        if self.munged:
            self.munged.terminate()
            self.munged.wait()

    @staticmethod
    def end(pid):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for _ in range(50):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    return
                time.sleep(0.1)

    def environment(self):
        return {"SLURM_CONF": str(self.conf)}

    def query(self, *command):
        done = subprocess.run(list(map(str, command)), env={**os.environ, **self.environment()},
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=60, check=False)
        return done.stdout.strip()

    def submit(self, *arguments, cwd):
        """The job's number."""
        done = run("sbatch", "--parsable", *arguments, cwd=cwd, stdout=subprocess.PIPE,
                   env={**os.environ, **self.environment()})
        return done.stdout.strip()

    def job(self, number):
        """What scontrol says of it: {"JobState": "RUNNING", ...}"""
        words = self.query("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)
