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
    logits_mib: int = Field(
        256, gt=0, description="Memory for fp32 logits on one rank; what needs more is computed in pieces, and twice."
    )
