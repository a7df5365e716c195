"""What the network is: its family and its dimensions."""

import math
from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section


class RopeConfig(Section):
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864)."""

    theta: float = Field(10000.0, gt=0, description="Base of the rotation frequencies; larger for longer contexts.")


class ModelConfig(Section):
    """A decoder-only transformer: grouped-query attention, RMSNorm, SwiGLU, no biases."""

    family: Literal["llama"] = Field("llama", description="Architecture family.")
    num_layers: int = Field(gt=0, description="Transformer layers.")
    hidden_size: int = Field(gt=0, description="Width of the residual stream.")
    ffn_hidden_size: int = Field(gt=0, description="Width of the feed-forward layer (one of gate and up).")
    num_attention_heads: int = Field(gt=0, description="Query heads.")
    num_query_groups: int | None = Field(
        None, gt=0, description="Key/value heads; None: as many as query heads (no grouping)."
    )
    head_dim: int | None = Field(
        None, gt=0, description="Width of one head; None: hidden_size / num_attention_heads, which must be exact."
    )
    vocab_size: int = Field(gt=0, description="Token ids of the tokenizer, without padding rows.")
    max_position_embeddings: int = Field(gt=0, description="Longest context in tokens.")
    rope: RopeConfig = Field(default_factory=RopeConfig, description="Rotary position embedding.")
    norm_eps: float = Field(1e-5, gt=0, description="Epsilon of RMSNorm; 1e-5 as in Llama.")
    tie_embeddings: bool = Field(
        False, description="Share the input embedding with the output layer; saves much of a small model."
    )
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
    hidden_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the residual branches; 0 in pre-training.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on attention weights; 0 in pre-training.")
    vocab_multiple: int = Field(
        128, gt=0, description="The embedding has a multiple of this many rows, for fast matrix products."
    )

    @property
    def query_groups(self) -> int:
        """Key/value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def kv_channels(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def padded_vocab_size(self, tensor: int) -> int:
        """Rows of the embedding: the vocabulary, rounded up so that ``tensor`` ranks hold equally many."""
        multiple = math.lcm(self.vocab_multiple, tensor)
        return -(-self.vocab_size // multiple) * multiple
