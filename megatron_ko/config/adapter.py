"""Low-rank adapters that are trained in place of the weights."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section

Target = Literal["qkv", "proj", "fc1", "fc2"]
FEED_FORWARD: tuple[Target, ...] = ("fc1", "fc2")


class AdapterConfig(Section):
    """Low-rank adapters: the weights of `checkpoint.start_from` stay as they are, and only adapters are trained."""

    kind: Literal["lora", "dora"] = Field(
        "lora", description="lora: W + s B A (arXiv:2106.09685); dora: with a trained length of each row (2402.09353)."
    )
    rank: int = Field(16, gt=0, description="Rows of A, columns of B.")
    alpha: float = Field(32.0, gt=0, description="s is alpha / rank.")
    targets: tuple[Target, ...] = Field(
        ("qkv", "proj", "fc1", "fc2"),
        min_length=1,
        description="Layers that have one: queries, keys and values; attention's output; gate and up; down.",
    )
    dropout: Annotated[float, Resume.FREE] = Field(
        0.0, ge=0, lt=1, description="Dropout on the input of the adapters in training."
    )

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / self.rank
