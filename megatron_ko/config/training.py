"""How long and in which portions the model is trained."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section


class TrainingConfig(Section):
    """Length and batch."""

    steps: int = Field(gt=0, description="Optimizer steps.")
    global_batch_size: int = Field(gt=0, description="Sequences in one optimizer step, over all ranks.")
    micro_batch_size: int = Field(1, gt=0, description="Sequences that one rank computes at a time.")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="Activations computed again in the backward pass; full: least memory, a third more work."
    )
