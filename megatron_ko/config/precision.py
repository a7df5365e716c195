"""The numbers that the model is computed in."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section


class Mxfp8Config(Section):
    """MXFP8: 8-bit floats with one power-of-two scale for 32 neighbours (OCP Microscaling formats v1.0)."""

    emulate: bool = Field(False, description="Round as Blackwell would and compute in full precision, on any device.")


class PrecisionConfig(Section):
    """Data type of weights and activations. The optimizer keeps fp32 master weights in every case."""

    dtype: Literal["fp32", "fp16", "bf16"] = Field(
        "bf16", description="bf16 on GPUs that have it; fp16 needs loss scaling; fp32 for tests and CPUs."
    )
    backend: Literal["auto", "portable", "transformer_engine"] = Field(
        "auto", description="Layer implementation; auto: Transformer Engine where CUDA and the package are present."
    )
    recipe: Literal["none", "fp8_delayed", "fp8_current", "fp8_blockwise", "mxfp8", "nvfp4"] = Field(
        "none",
        description="Low-precision matrix products; fp8_*: Hopper and later; mxfp8, nvfp4: Blackwell.",
    )
    fp8_format: Literal["e4m3", "hybrid"] = Field(
        "e4m3", description="Format of 8-bit gradients: e4m3, or e5m2 (hybrid). Weights and activations are e4m3."
    )
    first_layers_high: int = Field(0, ge=0, description="Layers at the bottom that stay out of the recipe.")
    last_layers_high: int = Field(
        0, ge=0, description="Layers at the top that stay out. Router and output layer always do."
    )
    fp8_weights: bool = Field(False, description="Keep the weights themselves in 8 bits and gather them so; needs TE.")
    mxfp8: Mxfp8Config = Field(default_factory=Mxfp8Config, description="Options of the recipe mxfp8.")
    initial_loss_scale: float = Field(65536.0, gt=0, description="fp16 only: first scale of the loss.")
    min_loss_scale: float = Field(1.0, gt=0, description="fp16 only: the scale never falls below this.")
    loss_scale_window: int = Field(1000, gt=0, description="fp16 only: good steps before the scale doubles.")
    loss_scale_hysteresis: int = Field(2, gt=0, description="fp16 only: overflows before the scale is halved.")
