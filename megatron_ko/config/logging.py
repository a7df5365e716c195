"""Where the run tells what it does. The JSON-lines metric store is always written."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section


class LoggingConfig(Section):
    """Sinks besides the metric store."""

    console: bool = Field(True, description="Progress on the terminal.")
    tensorboard: bool = Field(True, description="TensorBoard events under metrics/tensorboard.")
    wandb_project: str | None = Field(None, description="Weights & Biases project; needs the [wandb] extra.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least message level shown.")
