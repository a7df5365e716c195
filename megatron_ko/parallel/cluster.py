"""Joins the ranks that torchrun or srun has started."""

import os
import sys
from collections.abc import Callable
from typing import Any

from megatron_ko.errors import LaunchError
from megatron_ko.machine.place import cluster_place, meeting_point, own_cores
from megatron_ko.parallel.rank import join_world, run_rank, take_place


def join_cluster(
    target: Callable[..., int | None],
    args: tuple[Any, ...] = (),
    *,
    threads: int | None = None,
    timeout_s: float = 600.0,
) -> int:
    """Run ``target(*args)`` as one of the ranks started by torchrun or srun. Returns its exit code.

    Raises:
        LaunchError: the variables that say which rank this is, or where the ranks meet, are missing.
    """
    place = cluster_place()
    for name, value in meeting_point().items():
        os.environ.setdefault(name, value)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if place is None or missing:
        raise LaunchError(
            "this process does not know its world",
            got=f"{', '.join(missing)} not set" if place else "no variables of torchrun or srun",
            expected="torchrun's RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or the variables of a Slurm job step",
            remedy="start with torchrun or srun, or export MASTER_ADDR (the first node) and MASTER_PORT (a free port)",
        )
    known = place

    def join() -> None:
        take_place(known, threads or own_cores())
        join_world(None, known, timeout_s)

    ending = run_rank(target, args, known, join)
    if ending.failed:
        print(f"megatron-ko: {ending.message}" if ending.repairable else ending.message, file=sys.stderr, flush=True)
    return ending.exit_code
