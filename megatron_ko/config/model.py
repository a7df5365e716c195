"""The network: its family and its dimensions."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from megatron_ko.config.moe import MoeConfig
from megatron_ko.config.rope import RopeConfig
from megatron_ko.config.section import Resume, Section

Family = Literal["llama", "qwen3", "mixtral", "qwen3_moe", "keural"]
# Families whose query and key heads are normalised before the rotation, and those whose feed-forward layer has experts.
QK_NORM_FAMILIES = ("qwen3", "qwen3_moe")
MOE_FAMILIES = ("mixtral", "qwen3_moe", "keural")
# Families that may have windows, and those whose windows (if any) must be the same in all layers.
WINDOW_FAMILIES = ("qwen3", "mixtral", "qwen3_moe", "keural")
UNIFORM_WINDOW_FAMILIES = ("mixtral",)


class ModelConfig(Section):
    """A decoder-only transformer: grouped-query attention, RMSNorm, SwiGLU, no biases."""

    family: Family = Field(
        "llama", description="Architecture; qwen3: QK-norm; mixtral, qwen3_moe: experts; keural: experts and windows."
    )
    num_layers: int = Field(gt=0, description="Transformer layers.")
    hidden_size: int = Field(gt=0, description="Width of the residual stream.")
    ffn_hidden_size: int = Field(gt=0, description="Width of the feed-forward layer (gate or up) or of one expert.")
    num_attention_heads: int = Field(gt=0, description="Query heads.")
    num_query_groups: int | None = Field(
        None, gt=0, description="Key/value heads; None: as many as query heads (no grouping)."
    )
    head_dim: int | None = Field(
        None, gt=0, description="Width of one head; None: hidden_size / num_attention_heads, which must be exact."
    )
    vocab_size: int = Field(gt=0, description="Token ids of the tokenizer, without padding rows.")
    max_position_embeddings: Annotated[int, Resume.FREE] = Field(gt=0, description="Longest context in tokens.")
    rope: RopeConfig = Field(default_factory=RopeConfig, description="Rotary position embedding.")
    windows: tuple[int | None, ...] | None = Field(
        None, description="For each layer, earlier tokens that a token sees beside itself; null: all of them."
    )
    moe: MoeConfig | None = Field(None, description="Mixture of experts; for the families that have one.")
    norm_eps: float = Field(1e-5, gt=0, description="Epsilon of RMSNorm; 1e-5 as in Llama.")
    tie_embeddings: bool = Field(
        False, description="Share the input embedding with the output layer; saves much of a small model."
    )
    init_std: Annotated[float, Resume.FREE] = Field(
        0.02, gt=0, description="Standard deviation of the initial weights."
    )
    hidden_dropout: Annotated[float, Resume.FREE] = Field(
        0.0, ge=0, lt=1, description="Dropout on the residual branches; 0 in pre-training."
    )
    attention_dropout: Annotated[float, Resume.FREE] = Field(
        0.0, ge=0, lt=1, description="Dropout on attention weights; 0 in pre-training."
    )
    vocab_multiple: Annotated[int, Resume.FREE] = Field(
        128, gt=0, description="The embedding has a multiple of this many rows, for fast matrix products."
    )

    @property
    def query_groups(self) -> int:
        """Key/value heads."""
        return self.num_query_groups or self.num_attention_heads

    def explicit(self) -> dict[str, Any]:
        """The section with derived values filled in, as in configurations from elsewhere."""
        derived = {"head_dim": self.kv_channels, "num_query_groups": self.query_groups}
        return {**self.model_dump(mode="json"), **derived}

    @property
    def kv_channels(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def dropless(self) -> "ModelConfig":
        """The same network without expert capacity, so that tokens do not affect each other's routing."""
        if self.moe is None:
            return self
        return self.model_copy(update={"moe": self.moe.model_copy(update={"capacity_factor": None})})

    @property
    def qk_norm(self) -> bool:
        """Whether query and key heads are normalised."""
        return self.family in QK_NORM_FAMILIES

    def window_of(self, layer: int) -> int | None:
        """Earlier tokens that layer number ``layer``, counted from 0, sees; None: all."""
        return self.windows[layer] if self.windows else None

    def padded_vocab_size(self, tensor: int) -> int:
        """Rows of the embedding: the vocabulary, rounded up so that ``tensor`` ranks have the same number."""
        multiple = math.lcm(self.vocab_multiple, tensor)
        return -(-self.vocab_size // multiple) * multiple
