"""The number formats of the model."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section

Recipe = Literal["none", "fp8_delayed", "fp8_current", "fp8_blockwise", "mxfp8", "nvfp4"]
Fp8Format = Literal["e4m3", "hybrid"]
# With one scale per tensor, e4m3 has too little range for gradients; with one scale per block it has enough.
_PER_TENSOR_RECIPES = ("fp8_delayed", "fp8_current")


class Mxfp8Config(Section):
    """MXFP8: 8-bit floats with one power-of-two scale for 32 neighbours (OCP Microscaling formats v1.0)."""

    resume = Resume.FREE

    emulate: bool = Field(
        False, description="Round as the hardware would and compute in full precision, with portable layers, anywhere."
    )
    scale_rounding: Literal["down", "up"] = Field(
        "up",
        description="Emulation only. up: the next power of two where the largest value of a block would saturate, as "
        "Transformer Engine and Blackwell do; down: as the text of the specification says, it saturates.",
    )


class PrecisionConfig(Section):
    """Data type of weights and activations. The optimizer keeps fp32 master weights in every case."""

    resume = Resume.FREE

    dtype: Annotated[Literal["fp32", "fp16", "bf16"], Resume.BOUND] = Field(
        "bf16", description="bf16 on GPUs that have it; fp16 needs loss scaling; fp32 for tests and CPUs."
    )
    backend: Literal["auto", "portable", "transformer_engine"] = Field(
        "auto", description="Layer implementation; auto: Transformer Engine where CUDA and the package are present."
    )
    recipe: Recipe = Field(
        "none",
        description="Low-precision matrix products of the layers, never of router and output layer. fp8_delayed, "
        "fp8_current: a scale for a tensor; fp8_blockwise: Hopper; mxfp8, nvfp4: Blackwell. All need Transformer "
        "Engine, but for emulated mxfp8.",
    )
    fp8_format: Fp8Format | None = Field(
        None,
        description="Gradients in e4m3 like weights and activations, or in e5m2 (hybrid). None: what the recipe is "
        "made for, hybrid with a scale for a tensor, e4m3 with one for a block.",
    )
    first_layers_high: int = Field(0, ge=0, description="Layers at the bottom that stay out of the recipe.")
    last_layers_high: int = Field(0, ge=0, description="Layers at the top that stay out of the recipe.")
    fp8_weights: bool = Field(
        False,
        description="Keep the layers' weights in 8 bits only, beside the fp32 master weights of the distributed "
        "optimizer: less memory. All recipes but mxfp8 gather them in 8 bits, too.",
    )
    unfused_attention: bool = Field(
        False,
        description="Go on where Transformer Engine has no fused attention for a run on a GPU: slow, with all scores "
        "in memory. In fp32 there is none, and that is a warning in any case.",
    )
    mxfp8: Mxfp8Config = Field(default_factory=Mxfp8Config, description="Options of the recipe mxfp8.")
    initial_loss_scale: float = Field(65536.0, gt=0, description="fp16 only: first scale of the loss.")
    min_loss_scale: float = Field(1.0, gt=0, description="fp16 only: the scale never falls below this.")
    loss_scale_window: int = Field(1000, gt=0, description="fp16 only: good steps before the scale doubles.")
    loss_scale_hysteresis: int = Field(2, gt=0, description="fp16 only: overflows before the scale is halved.")

    @property
    def emulated(self) -> bool:
        """Whether MXFP8 is emulated."""
        return self.recipe == "mxfp8" and self.mxfp8.emulate

    @property
    def layer_backend(self) -> Literal["auto", "portable", "transformer_engine"]:
        """``backend``, or "portable" if MXFP8 is emulated."""
        return "portable" if self.emulated else self.backend

    @property
    def gradient_format(self) -> Fp8Format:
        """``fp8_format``, or the recipe's default."""
        return self.fp8_format or ("hybrid" if self.recipe in _PER_TENSOR_RECIPES else "e4m3")

    @property
    def summary(self) -> str:
        """Data type and recipe in a few words."""
        if self.recipe == "none":
            return self.dtype
        words: list[str] = [self.recipe]
        words += (
            [] if self.recipe == "nvfp4" else [f"gradients {'e5m2' if self.gradient_format == 'hybrid' else 'e4m3'}"]
        )
        words += [f"emulated with scales rounded {self.mxfp8.scale_rounding}"] if self.emulated else []
        words += ["weights in 8 bits"] if self.fp8_weights else []
        if self.first_layers_high or self.last_layers_high:
            words.append(f"{self.first_layers_high} first and {self.last_layers_high} last layers high")
        return f"{self.dtype} with {', '.join(words)}"

    def is_high(self, layer: int, num_layers: int) -> bool:
        """Whether layer number ``layer``, counted from 0, does not use the recipe."""
        return layer < self.first_layers_high or layer >= num_layers - self.last_layers_high
