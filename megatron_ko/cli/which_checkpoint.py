"""Which checkpoint of a run a command reads: the newest one, the one of a step, or that of the best validation."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_ko.artifacts.native import best_step

Step = Annotated[int | None, typer.Option(min=0, help="Checkpoint of a run; default: the newest valid one.")]
Best = Annotated[bool, typer.Option("--best", help="The checkpoint of the best validation (checkpoint.keep_best).")]


def chosen_step(folder: Path, step: int | None, best: bool) -> int | None:
    """The step that both options mean; None for the newest one.

    Raises:
        CheckpointError: the run has no checkpoint of its best validation.
    """
    if best and step is not None:
        raise typer.BadParameter("give --step or --best, not both")
    return best_step(folder) if best else step
