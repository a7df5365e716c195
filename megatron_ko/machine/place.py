"""The position of a process among the ranks, from the variables of torchrun and Slurm. Needs no torch."""

import os
import re
import sys
from dataclasses import dataclass

# Below the ports that Linux uses for outgoing connections, which begin at 32768.
_FIRST_PORT, _PORTS = 16000, 16000


@dataclass(frozen=True)
class Place:
    """The position of a rank.

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
    """Number of ranks that torchrun or srun has started; None if this process was started directly.

    A single task of srun, such as an interactive shell, counts as a direct start: it starts its ranks itself.
    """
    place = cluster_place()
    return place.world_size if place else None


def cluster_place() -> Place | None:
    """The position that torchrun or srun gave this process; None if it was started directly."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world_size = int(env["WORLD_SIZE"])
        local_size = int(env.get("LOCAL_WORLD_SIZE", world_size))
        return Place(int(env["RANK"]), int(env.get("LOCAL_RANK", env["RANK"])), world_size, local_size)
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        # "4(x2)", or "4(x2),3" if nodes differ; the first number is enough to divide the cores. SLURM_NTASKS_PER_NODE
        # is what the job requested, and may be more than this step has.
        local_size = int(re.split(r"\D", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0])
        return Place(int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", 0)), int(env["SLURM_NTASKS"]), local_size)
    return None


def meeting_point() -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT for the ranks of a Slurm job step: task 0 is on its first node."""
    env = os.environ
    if "SLURM_STEP_NODELIST" not in env or "SLURM_JOB_ID" not in env:
        return {}
    number = int(env["SLURM_JOB_ID"]) + 101 * int(env.get("SLURM_STEP_ID", 0))  # steps of a job may run in parallel
    return {"MASTER_ADDR": first_host(env["SLURM_STEP_NODELIST"]), "MASTER_PORT": str(_FIRST_PORT + number % _PORTS)}


def is_restart() -> bool:
    """Whether Slurm or torchrun has restarted this job automatically."""
    return any(int(os.environ.get(name, "0")) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def first_host(nodes: str) -> str:
    """The first name in a Slurm host list: "gpu007" of "gpu[007-009,12],login1"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def own_cores() -> int | None:
    """CPUs that Slurm has reserved for this rank, if requested; the task may already be bound to them."""
    promised = os.environ.get("SLURM_CPUS_PER_TASK")
    if promised is None or "RANK" in os.environ:  # torchrun's task divides them among its ranks
        return None
    return min(int(promised), usable_cores())


def threads_per_rank(local_size: int) -> int:
    """CPU threads of one rank if the cores that this process may use are shared evenly."""
    return max(1, usable_cores() // local_size)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
