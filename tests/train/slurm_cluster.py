"""A real Slurm on this machine: munged, slurmctld, and a slurmd for each node.

Every node is a set of Linux namespaces with its own host name, network card and processes. So ranks on two nodes talk
over a network, and a node can lose its power.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from patience import PATIENCE

ROOT = Path(__file__).parents[2]
PACKAGES = "slurmctld slurmd slurm-client munge iproute2"
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip")

_CONF = """
ClusterName=test
SlurmctldHost=control
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=10
JobRequeue=0
NodeName=n[1-{nodes}] CPUs=16 Gres=gpu:8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
# The programs of Slurm stay below a shell, which is the first process there and reaps what nobody waits for.
_CONTROL = """
hostname control; mount --bind {folder}/hosts /etc/hosts
ip link set lo up; ip link add bridge type bridge; ip addr add 10.77.0.100/24 dev bridge; ip link set bridge up
slurmctld -D; true
"""
_NODE = """
hostname {name}; mount --bind {folder}/hosts /etc/hosts; ip link set lo up
until ip addr add 10.77.0.{number}/24 dev eth0 2> {folder}/link.log; do sleep 0.05; done
ip link set eth0 up; slurmd -D -N {name}; sleep infinity
"""


def why_not() -> str:
    """Why there can be no cluster here; empty when there can."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"without {', '.join(missing)}: apt-get install {PACKAGES}"
    if os.geteuid() != 0:
        return "only root may make the namespaces of the nodes"
    made = subprocess.run([*_machine("true")], capture_output=True, text=True)
    return f"no namespaces here: {made.stderr}" if made.returncode else ""


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"


def _machine(script: str) -> list[str]:
    new = ["--net", "--uts", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
    return ["unshare", *new, "bash", "-c", script]


def wait_for(what: str, true: Callable[[], bool]) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.1)


class Cluster:
    """A running cluster; commands run on the machine of its controller."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "PATH": _path(),
            "PYTHONPATH": str(ROOT),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MEGATRON_KO_DEVICE": "cpu",
        }
        self._machines: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Write the files of the cluster and start it."""
        folder = self.folder
        hosts = ["127.0.0.1 localhost", "10.77.0.100 control"]
        hosts += [f"10.77.0.{number} {name}" for number, name in enumerate(self.names, 1)]
        gpus = [folder / f"gpu{number}" for number in range(8)]  # plain files: Slurm only counts them
        for gpu in gpus:
            gpu.touch()
        (folder / "hosts").write_text("\n".join(hosts) + "\n")
        (folder / "gres.conf").write_text(f"NodeName=n[1-{len(self.names)}] Name=gpu File={folder}/gpu[0-7]\n")
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder, nodes=len(self.names)))
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        (folder / "state").mkdir()
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
        self._spawn("munge", ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files])
        self._spawn("control", _machine(_CONTROL.format(folder=folder)))
        wait_for("the controller", lambda: self.run("scontrol", "ping").returncode == 0)
        for name in self.names:
            self.power_on(name)
        wait_for("the nodes", lambda: self.states() == dict.fromkeys(self.names, "idle"))

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._machines[name] = subprocess.Popen(command, stdout=out, stderr=out, env=self.env)

    def power_on(self, name: str) -> None:
        """Start a node."""
        (self.folder / name).mkdir(exist_ok=True)
        self._spawn(name, _machine(_NODE.format(folder=self.folder, name=name, number=name[1:])))
        port = f"port-{name}"
        peer = ("peer", "name", "eth0", "netns", str(self._machines[name].pid))
        # It enters a network of its own a moment after it is started.
        own = Path(f"/proc/{self._machines[name].pid}/ns/net")
        wait_for("a network", lambda: os.readlink(own) != os.readlink("/proc/self/ns/net"))
        self.check("ip", "link", "add", port, "master", "bridge", "type", "veth", *peer)
        self.check("ip", "link", "set", port, "up")

    def power_off(self, name: str) -> None:
        """Take a node from the network, so that nobody hears its end, and kill everything on it at once."""
        self.check("ip", "link", "delete", f"port-{name}")
        self._kill(name)

    def _kill(self, name: str) -> None:
        self._machines[name].kill()
        self._machines[name].wait()

    def stop(self) -> None:
        """Kill everything."""
        for name in reversed(self._machines):
            self._kill(name)

    def inside(self, *words: str) -> list[str]:
        """A command line that runs on the controller's machine."""
        control = str(self._machines["control"].pid)
        return ["nsenter", "--target", control, "--net", "--uts", "--mount", f"--wd={self.folder}", "--", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, in the folder of the cluster."""
        command = self.inside(*words)
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=PATIENCE)

    def check(self, *words: str) -> str:
        """Run a command there that has to succeed; its standard output."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """State of every node, as sinfo says it."""
        lines = self.check("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        shown = self.check("scontrol", "show", "job", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def tasks(self, number: str) -> dict[int, psutil.Process]:
        """The ranks of a job that run, by rank."""
        found = {}
        for process in psutil.process_iter(["name", "environ"]):
            env = process.info["environ"] or {}
            if env.get("SLURM_JOB_ID") == number and process.info["name"] == "megatron-ko":
                found[int(env["SLURM_PROCID"])] = process
        return found


@contextmanager
def running_cluster(folder: Path, nodes: int) -> Iterator[Cluster]:
    """A cluster that ends with the block."""
    cluster = Cluster(folder, nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
