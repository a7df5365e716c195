"""The families as tables: which tensor of ours is which of Hugging Face's, and which field which."""

from megatron_ko.config import ModelConfig
from megatron_ko.convert.families.base import Family
from megatron_ko.convert.families.keural import KEURAL, is_mixtral
from megatron_ko.convert.families.llama import LLAMA
from megatron_ko.convert.families.mixtral import MIXTRAL
from megatron_ko.convert.families.qwen3 import QWEN3, QWEN3_MOE

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "keural": KEURAL,
}


def family_of(model: ModelConfig) -> Family:
    """How a model goes to Hugging Face: by its family, but Keural as plain Mixtral where that computes the same."""
    return MIXTRAL if model.family == "keural" and is_mixtral(model) else FAMILIES[model.family]


__all__ = ["FAMILIES", "Family", "family_of"]
