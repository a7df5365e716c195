"""Where a process stands among others, told by the variables of torchrun and Slurm. Needs no torch."""

import os
import re
import sys
from dataclasses import dataclass

# Below the ports that Linux gives to outgoing connections, which begin at 32768.
_FIRST_PORT, _PORTS = 16000, 16000


@dataclass(frozen=True)
class Place:
    """Where a rank is.

    Attributes:
        rank: number in the world.
        local_rank: number on this machine.
        world_size: ranks in the world.
        local_size: ranks on this machine.
    """

    rank: int
    local_rank: int
    world_size: int
    local_size: int


def cluster_world_size() -> int | None:
    """Ranks in the world that torchrun or srun has started; None when this process was started plainly.

    A single task of srun, such as an interactive shell, counts as plain: it starts its ranks itself.
    """
    place = cluster_place()
    return place.world_size if place else None


def cluster_place() -> Place | None:
    """Where torchrun or srun has put this process; None when it was started plainly."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world_size = int(env["WORLD_SIZE"])
        local_size = int(env.get("LOCAL_WORLD_SIZE", world_size))
        return Place(int(env["RANK"]), int(env.get("LOCAL_RANK", env["RANK"])), world_size, local_size)
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        # "4(x2)", and "4(x2),3" where nodes differ: the first number is enough to share out cores. What was asked of
        # the job, SLURM_NTASKS_PER_NODE, may be more than this step has.
        local_size = int(re.split(r"\D", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0])
        return Place(int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", 0)), int(env["SLURM_NTASKS"]), local_size)
    return None


def meeting_point() -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT for the ranks of a step of Slurm: task 0 is on its first node."""
    env = os.environ
    if "SLURM_STEP_NODELIST" not in env or "SLURM_JOB_ID" not in env:
        return {}
    number = int(env["SLURM_JOB_ID"]) + 101 * int(env.get("SLURM_STEP_ID", 0))  # steps of a job run side by side
    return {"MASTER_ADDR": first_host(env["SLURM_STEP_NODELIST"]), "MASTER_PORT": str(_FIRST_PORT + number % _PORTS)}


def is_restart() -> bool:
    """Whether Slurm or torchrun has started this job again by itself."""
    return any(int(os.environ.get(name, "0")) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def first_host(nodes: str) -> str:
    """The first name in a list as Slurm writes it: "gpu007" of "gpu[007-009,12],login1"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def own_cores() -> int | None:
    """CPUs that Slurm has promised this rank, where it was asked to; the task may be bound to them already."""
    promised = os.environ.get("SLURM_CPUS_PER_TASK")
    if promised is None or "RANK" in os.environ:  # a task that is torchrun shares them out
        return None
    return min(int(promised), usable_cores())


def threads_per_rank(local_size: int) -> int:
    """CPU threads of one rank when the cores that this process may use are shared evenly."""
    return max(1, usable_cores() // local_size)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
