"""The optimizer and its learning-rate schedule."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class ParameterGroup(Section):
    """Parameters that learn faster or slower than the others, or decay more or less."""

    match: str = Field(
        min_length=1,
        description="Pattern of names as in checkpoints: embedding.*, decoder.layers.3.*, *.linear_fc2.weight.",
    )
    lr_factor: float = Field(1.0, ge=0, description="Times optim.lr.")
    decay_factor: float = Field(1.0, ge=0, description="Times optim.weight_decay; norms have none whatever it is.")


class OptimConfig(Section):
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) with fp32 master weights."""

    resume = Resume.FREE

    lr: float = Field(gt=0, description="Peak learning rate.")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="Final learning rate as a share of the peak.")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = Field(
        "cosine", description="wsd: warm-up, stable, then a decay that follows 1 - sqrt."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from zero.")
    decay_steps: int | None = Field(
        None, gt=0, description="wsd only: steps of the final decay; None: a fifth of the training steps."
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay of matrices; norms and biases have none.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment; 0.95 is steadier than 0.999.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    offload: float = Field(
        0.0, ge=0, le=1, description="Share of the optimizer that is kept and computed in host memory; CUDA only."
    )
    groups: Annotated[tuple[ParameterGroup, ...], Resume.BOUND] = Field(
        (), description="Exceptions from lr and weight_decay; of several that match the last one counts."
    )
    clip_grad: float = Field(1.0, ge=0, description="Largest global gradient norm; 0: no clipping.")
