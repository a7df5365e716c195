"""Joining the world that torchrun or srun has started."""

import os
import re
import sys
from collections.abc import Callable
from typing import Any

from megatron_ko.errors import LaunchError
from megatron_ko.parallel.rank import Place, join_world, run_rank, take_place, usable_cores

# Below the ports that Linux gives to outgoing connections, which begin at 32768.
_FIRST_PORT, _PORTS = 16000, 16000


def cluster_world_size() -> int | None:
    """Ranks in the world that torchrun or srun has started; None when this process was started plainly.

    A single task of srun, such as an interactive shell, counts as plain: it starts its ranks itself.
    """
    place = _cluster_place()
    return place.world_size if place else None


def _cluster_place() -> Place | None:
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


def _meeting_point() -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT for the ranks of a step of Slurm: task 0 is on its first node."""
    env = os.environ
    if "SLURM_STEP_NODELIST" not in env or "SLURM_JOB_ID" not in env:
        return {}
    number = int(env["SLURM_JOB_ID"]) + 101 * int(env.get("SLURM_STEP_ID", 0))  # steps of a job run side by side
    return {"MASTER_ADDR": first_host(env["SLURM_STEP_NODELIST"]), "MASTER_PORT": str(_FIRST_PORT + number % _PORTS)}


def first_host(nodes: str) -> str:
    """The first name in a list as Slurm writes it: "gpu007" of "gpu[007-009,12],login1"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def _own_cores() -> int | None:
    """CPUs that Slurm has promised this rank, where it was asked to; the task may be bound to them already."""
    promised = os.environ.get("SLURM_CPUS_PER_TASK")
    if promised is None or "RANK" in os.environ:  # a task that is torchrun shares them out
        return None
    return min(int(promised), usable_cores())


def join_cluster(
    target: Callable[..., int | None],
    args: tuple[Any, ...] = (),
    *,
    threads: int | None = None,
    timeout_s: float = 600.0,
) -> int:
    """Run ``target(*args)`` as one rank of the world that torchrun or srun has started. Returns its exit code.

    Raises:
        LaunchError: the variables that say which rank this is, or where the ranks meet, are missing.
    """
    place = _cluster_place()
    for name, value in _meeting_point().items():
        os.environ.setdefault(name, value)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if place is None or missing:
        raise LaunchError(
            "this process does not know its world",
            got=f"without {', '.join(missing)}" if place else "neither torchrun's nor srun's variables",
            expected="torchrun's RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or the variables of a step of Slurm",
            remedy="start with torchrun or srun, or export MASTER_ADDR (the first node) and MASTER_PORT (a free port)",
        )
    known = place

    def join() -> None:
        take_place(known, threads or _own_cores())
        join_world(None, known, timeout_s)

    ending = run_rank(target, args, known, join)
    if ending.failed:
        print(f"megatron-ko: {ending.message}" if ending.repairable else ending.message, file=sys.stderr, flush=True)
    return ending.exit_code
