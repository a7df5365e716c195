"""`megatron-ko sweep`: trains the trials of a sweep, one after another or as an array of jobs, and compares them."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ko.cli.data_options import AsJson
from megatron_ko.config.sweep import SweepConfig, load_sweep, trials_of
from megatron_ko.storage.files import write_atomic

if TYPE_CHECKING:
    from megatron_ko.report.sweep import TrialResult

_DONE = "sweep.done"  # in the folder of a trial that needs no further start


def sweep(
    sweep_file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="Run file, values, metric.")],
    rank: Annotated[int, typer.Option(min=0, help="Number of this job among --size.")] = 0,
    size: Annotated[int, typer.Option(min=1, help="Jobs that share the trials, as in a Slurm array.")] = 1,
    table: Annotated[bool, typer.Option("--table", help="Only compare what there is.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train every combination of some values, and name the best by a metric that means the same in all of them.

    All configurations are checked before the first trial starts. Finished trials are not started again: after a kill,
    the same command goes on. Data, packs and reference are shared.

    Example: megatron-ko sweep configs/sweeps/frankenstallm-3b-orpo.yaml --rank $SLURM_ARRAY_TASK_ID --size 9
    """
    if rank >= size:
        raise typer.BadParameter(f"--rank {rank} must be below --size {size}")
    plan = load_sweep(sweep_file)
    if not table:
        _train(plan, rank, size, as_json)
    _compare(plan, as_json)


def _train(plan: SweepConfig, rank: int, size: int, quiet: bool) -> None:
    """Train this job's trials. What stops one of them stops the sweep."""
    trials = list(trials_of(plan))
    for number, trial in enumerate(trials):
        folder = plan.dir / trial.name
        if number % size != rank or (folder / _DONE).is_file():
            continue
        typer.echo(f"trial {number + 1} of {len(trials)}: {trial.name}", err=True)
        words = ["train", str(plan.run), f"run.dir={folder}", f"run.name={json.dumps(trial.name)}", *trial.overrides]
        stdout = sys.stderr if quiet else None
        code = subprocess.run([sys.executable, "-m", "megatron_ko.cli.main", *words], stdout=stdout).returncode
        if code:
            raise typer.Exit(code)
        write_atomic(folder / _DONE, b"")


def _compare(plan: SweepConfig, as_json: bool) -> None:
    from megatron_ko.report.sweep import draw, read_results, winner

    results = read_results(plan)
    best = winner(plan, results)
    found = {
        "metric": plan.metric,
        "trials": [asdict(result) for result in results],
        "best": None if best is None else best.name,
    }
    plan.dir.mkdir(parents=True, exist_ok=True)
    write_atomic(plan.dir / "sweep.json", (json.dumps(found, ensure_ascii=False, indent=2) + "\n").encode("utf-8"))
    drawn = draw(plan, results, plan.dir / "sweep.png")
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    typer.echo(_table(plan, results))
    if best is not None:
        waiting = sum(result.state != "done" for result in results)
        so_far = f" so far; {waiting} of {len(results)} trials are not done" if waiting else ""
        typer.echo(f"best{so_far}: {best.name}, {plan.metric} {best.best:.4f} at step {best.best_step}")
    if drawn:
        typer.echo(str(plan.dir / "sweep.png"))


def _table(plan: SweepConfig, results: "list[TrialResult]") -> str:
    keys = list(dict.fromkeys(key for result in results for key in result.values))
    header = [*keys, plan.metric, "at step", "steps", "minutes", "state"]
    rows = [
        [
            *(str(result.values.get(key, "")) for key in keys),
            "-" if result.best is None else f"{result.best:.4f}",
            "-" if result.best_step is None else str(result.best_step),
            str(result.steps),
            f"{result.seconds / 60:.1f}",
            result.state,
        ]
        for result in results
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)
    )
