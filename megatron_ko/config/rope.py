"""Rotary position embeddings, and their scaling for contexts longer than in training."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_ko.config.section import Section

_FACTOR = "Longest context wanted, divided by the original one."
_ORIGINAL = "Context in tokens that the frequencies were trained with."
_ORIGINAL_EXAMPLE = 32768


class LinearScaling(Section):
    """Positions divided by a factor (Chen et al., 2023, arXiv:2306.15595)."""

    type: Literal["linear"] = Field(description="Which scaling.")
    factor: float = Field(ge=1, description=_FACTOR)


class NtkScaling(Section):
    """A larger base, fixed: theta * factor ** (d / (d - 2)) with d the width of a head (NTK-aware scaling)."""

    type: Literal["ntk"] = Field(description="Which scaling.")
    factor: float = Field(ge=1, description=_FACTOR)


class DynamicScaling(Section):
    """NTK-aware scaling whose base grows with the sequence once it is longer than the original context."""

    type: Literal["dynamic"] = Field(description="Which scaling.")
    factor: float = Field(ge=1, description=_FACTOR)
    original_max_position_embeddings: int = Field(gt=0, description=_ORIGINAL, examples=[_ORIGINAL_EXAMPLE])


class YarnScaling(Section):
    """YaRN (Peng et al., 2023, arXiv:2309.00071): high frequencies kept, low ones interpolated, attention sharpened."""

    type: Literal["yarn"] = Field(description="Which scaling.")
    factor: float = Field(ge=1, description=_FACTOR)
    original_max_position_embeddings: int = Field(gt=0, description=_ORIGINAL, examples=[_ORIGINAL_EXAMPLE])
    beta_fast: float = Field(32.0, gt=0, description="Dimensions that turn more often than this are not interpolated.")
    beta_slow: float = Field(1.0, gt=0, description="Dimensions that turn less often are interpolated in full.")
    mscale: float | None = Field(
        None, gt=0, description="m of 0.1 m ln(factor) + 1, the factor on queries and on keys; None: 1."
    )
    mscale_all_dim: float | None = Field(
        None, gt=0, description="m of what that factor is divided by, likewise. Together with mscale, or neither."
    )


class Llama3Scaling(Section):
    """Llama 3.1: low frequencies divided by the factor, high ones kept, a smooth passage between."""

    type: Literal["llama3"] = Field(description="Which scaling.")
    factor: float = Field(ge=1, description="Divides the low frequencies; Llama 3.1 takes 8 for a context 16 times.")
    original_max_position_embeddings: int = Field(gt=0, description=_ORIGINAL, examples=[_ORIGINAL_EXAMPLE])
    low_freq_factor: float = Field(1.0, gt=0, description="original / this: wavelengths above are divided by factor.")
    high_freq_factor: float = Field(4.0, gt=0, description="original / this: wavelengths below are kept.")


RopeScaling = Annotated[
    LinearScaling | NtkScaling | DynamicScaling | YarnScaling | Llama3Scaling, Field(discriminator="type")
]


class RopeConfig(Section):
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864)."""

    theta: float = Field(10000.0, gt=1, description="Base of the rotation frequencies; larger for longer contexts.")
    scaling: RopeScaling | None = Field(None, description="Extension beyond the context of the first training.")
