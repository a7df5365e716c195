"""The numbers that the model is computed in."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section


class PrecisionConfig(Section):
    """Data type of weights and activations. The optimizer keeps fp32 master weights in every case."""

    dtype: Literal["fp32", "fp16", "bf16"] = Field(
        "bf16", description="bf16 on GPUs that have it; fp16 needs loss scaling; fp32 for tests and CPUs."
    )
    backend: Literal["auto", "portable", "transformer_engine"] = Field(
        "auto", description="Layer implementation; auto: Transformer Engine where CUDA and the package are present."
    )
    initial_loss_scale: float = Field(65536.0, gt=0, description="fp16 only: first scale of the loss.")
    min_loss_scale: float = Field(1.0, gt=0, description="fp16 only: the scale never falls below this.")
    loss_scale_window: int = Field(1000, gt=0, description="fp16 only: good steps before the scale doubles.")
    loss_scale_hysteresis: int = Field(2, gt=0, description="fp16 only: overflows before the scale is halved.")
