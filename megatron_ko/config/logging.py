"""Where the run reports its progress. The JSON-lines metric store is always written."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class ProfileConfig(Section):
    """Steps that PyTorch's profiler watches on rank 0; they are slower than others."""

    resume = Resume.SILENT

    start: int = Field(gt=0, description="First step that is watched; let five or more pass before it.")
    steps: int = Field(2, gt=0, description="Steps that are watched.")


class LoggingConfig(Section):
    """Sinks besides the metric store."""

    resume = Resume.SILENT

    console: bool = Field(True, description="Progress on the terminal.")
    tensorboard: bool = Field(True, description="TensorBoard events under metrics/tensorboard.")
    wandb_project: str | None = Field(None, description="Weights & Biases project; needs the [wandb] extra.")
    profile: ProfileConfig | None = Field(
        None, description="Write profile/ in the run: a trace for Perfetto, a table of kernels, where a step's time is."
    )
    memory_history: bool = Field(
        False,
        description="Record every allocation on a GPU. When memory runs out, memory/ in the run gets a snapshot for "
        "pytorch.org/memory_viz.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least message level shown.")
