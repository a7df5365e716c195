"""Length of the training, batch sizes, and recomputation."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class EarlyStopping(Section):
    """When a run ends because validations no longer improve."""

    resume = Resume.FREE

    metric: Literal["valid_loss", "accuracy", "margin"] = Field(
        "valid_loss", description="What is compared: the loss, or with preferences the accuracy or margin."
    )
    patience: int = Field(gt=0, description="Validations in a row without improvement that end the run.")
    min_delta: float = Field(0.0, ge=0, description="What counts as an improvement.")


class TrainingConfig(Section):
    """Length and batch."""

    resume = Resume.FREE

    steps: int = Field(gt=0, description="Optimizer steps.")
    global_batch_size: int = Field(gt=0, description="Sequences in one optimizer step, over all ranks.")
    micro_batch_size: int = Field(1, gt=0, description="Sequences that one rank computes at a time.")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="Activations computed again in the backward pass; full: least memory, a third more work."
    )
    recompute_modules: tuple[Literal["core_attn", "layernorm", "mlp", "moe", "moe_act", "shared_experts"], ...] = Field(
        ("core_attn",), description="What recompute: selective computes again in every layer."
    )
    recompute_layers: int | None = Field(
        None, gt=0, description="How many layers of each model chunk recompute: full computes again; None: all."
    )
    offload_layers: int = Field(
        0, ge=0, description="Layers whose activations wait in host memory for the backward pass; needs TE."
    )
    early_stopping: EarlyStopping | None = Field(None, description="None: the run does all its steps.")
    logits_mib: int | None = Field(
        None,
        gt=0,
        description="Memory for fp32 logits on one rank; what needs more is computed in pieces, and twice. None: a "
        "sixteenth of a GPU's memory, 256 on a CPU.",
    )
