"""`megatron-ko train`: checks the configuration, starts the ranks, and returns their exit code."""

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from megatron_ko import log
from megatron_ko.config import LaunchConfig, check_world, load_config, raise_problems
from megatron_ko.errors import LaunchError
from megatron_ko.machine.device import device_count
from megatron_ko.machine.place import cluster_world_size, is_restart


def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="Run configuration.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values to override.")
    ] = None,
    from_step: Annotated[
        int | None, typer.Option("--from-step", min=1, help="Go back to the checkpoint of this step.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")] = False,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="With --dry-run: the data is not on this machine.")
    ] = False,
) -> None:
    """Start the run of a configuration, or continue it from its newest valid checkpoint.

    Starts its ranks itself, unless torchrun or srun has done so. Exit codes: 0 done, 2 a problem that you can fix,
    75 stopped on request with a checkpoint (start again to continue). With --from-step, newer checkpoints are moved
    aside and metrics cut back; a job restarted by Slurm or torchrun still continues from its newest checkpoint.

    Example: megatron-ko train configs/runs/demo.yaml run.dir=runs/demo training.steps=100
    """
    config = load_config(run_file, overrides or [])
    log.configure(0, config.logging.level)
    for name, value in config.launch.environment.items():  # before anything reads them; PyTorch does so on import
        os.environ.setdefault(name, value)
    joined = cluster_world_size()
    world_size = joined or _plain_world_size(config.launch, config.parallel.smallest_world)
    raise_problems(check_world(config, world_size), f"{run_file} on {world_size} ranks")
    if dry_run:
        from megatron_ko.data.training.preview import preview_data
        from megatron_ko.train.summary import summarise

        typer.echo("\n".join(summarise(config, world_size)))
        if not no_data:
            preview = preview_data(config)
            typer.echo(preview.line())
            if warning := preview.warning():
                typer.echo(f"warning     {warning}")
        return
    # megatron-core warns about its internals, on import and on every rank; a user cannot change that.
    warnings.filterwarnings("ignore", module=r"(megatron\.core|torch)\b")
    from megatron_ko.parallel import cluster, spawn
    from megatron_ko.train import setup

    arguments = (config, None if is_restart() else from_step)
    threads, timeout_s = config.launch.threads_per_rank, config.resilience.timeout_s
    if joined:
        code = cluster.join_cluster(setup.main, arguments, threads=threads, timeout_s=timeout_s)
    else:
        code = spawn.run_ranks(setup.main, world_size, arguments, threads=threads, timeout_s=timeout_s)
    raise typer.Exit(code)


def _plain_world_size(launch: LaunchConfig, smallest: int) -> int:
    """Ranks to start on this machine: the configured number, else one per GPU, else one copy of the model."""
    if launch.nodes > 1:
        raise LaunchError(
            "a run on several machines must be started on each of them",
            got=f"launch.nodes {launch.nodes}, without srun or torchrun",
            remedy="start it with srun or torchrun, or set launch.nodes=1",
        )
    return launch.ranks_per_node or device_count() or smallest
