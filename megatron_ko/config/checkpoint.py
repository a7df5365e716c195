"""When checkpoints are saved, and how many are kept."""

from pathlib import Path

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class CheckpointConfig(Section):
    """Checkpoints of a run."""

    resume = Resume.SILENT

    start_from: Path | None = Field(
        None,
        description="Native model or run whose weights a new run starts with; a continued one has its own, but of "
        "adapters it has only these, and reads the rest here again.",
    )
    start_best: bool = Field(
        False, description="Start with the run's checkpoint of the best validation, not with its newest one."
    )
    interval: int = Field(
        1000, ge=0, description="Steps between checkpoints; the last step is saved, too. 0: nothing is, to measure."
    )
    keep: int = Field(2, gt=0, description="Newest checkpoints kept; older ones are removed after a save succeeded.")
    keep_best: bool = Field(
        False, description="Save each best validation so far, and keep its checkpoint beside the newest ones."
    )
    keep_every: int | None = Field(
        None, gt=0, description="Checkpoints of every so many steps stay for good; give a multiple of interval."
    )
