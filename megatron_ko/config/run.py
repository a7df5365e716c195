"""The whole configuration of a run: one frozen tree."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from megatron_ko.config.adapter import AdapterConfig
from megatron_ko.config.checkpoint import CheckpointConfig
from megatron_ko.config.data import DataConfig
from megatron_ko.config.evaluation import EvalConfig
from megatron_ko.config.launch import LaunchConfig
from megatron_ko.config.logging import LoggingConfig
from megatron_ko.config.model import ModelConfig
from megatron_ko.config.objective import ObjectiveConfig
from megatron_ko.config.optim import OptimConfig
from megatron_ko.config.parallel import ParallelConfig
from megatron_ko.config.precision import PrecisionConfig
from megatron_ko.config.resilience import ResilienceConfig
from megatron_ko.config.section import Resume, Section
from megatron_ko.config.training import TrainingConfig


class RunSection(Section):
    """The identity of a run."""

    resume = Resume.SILENT

    dir: Path = Field(description="Run directory: everything that the run writes is in it.")
    name: str = Field("run", min_length=1, description="Name in reports and trackers.")
    seed: Annotated[int, Resume.FREE] = Field(
        1234, ge=0, lt=2**32, description="Decides initial weights, sample order and dropout."
    )


class RunConfig(Section):
    """Everything that decides what a run computes."""

    run: RunSection = Field(description="Identity of the run.")
    model: ModelConfig = Field(description="The network.")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Parallel axes.")
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig, description="Number formats.")
    data: DataConfig = Field(description="The corpus.")
    adapter: AdapterConfig | None = Field(None, description="Adapters that are trained in place of all weights.")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="The loss.")
    optim: OptimConfig = Field(description="Optimizer and schedule.")
    training: TrainingConfig = Field(description="Length and batch.")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="Validation.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="Checkpoints.")
    logging: LoggingConfig = Field(default_factory=LoggingConfig, description="Sinks.")
    resilience: ResilienceConfig = Field(default_factory=ResilienceConfig, description="Limits.")
    launch: LaunchConfig = Field(default_factory=LaunchConfig, description="Processes.")

    @property
    def separates_documents(self) -> bool:
        """Whether a token sees its own document only: always, where rows are packed."""
        return self.data.document_mask or self.objective.kind != "lm"
