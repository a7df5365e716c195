"""The families as tables: which tensors and fields of ours correspond to which of Hugging Face's."""

from megatron_ko.config import ModelConfig
from megatron_ko.convert.families.base import Family
from megatron_ko.convert.families.common import with_shared_rules
from megatron_ko.convert.families.keural import KEURAL, is_mixtral
from megatron_ko.convert.families.llama import LLAMA
from megatron_ko.convert.families.mixtral import MIXTRAL
from megatron_ko.convert.families.qwen3 import QWEN3, QWEN3_MOE
from megatron_ko.convert.mapping import TensorRule

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


def rules_of(model: ModelConfig) -> tuple[TensorRule, ...]:
    """Every rule of a model: embedding, attention, feed-forward layers and output."""
    return with_shared_rules(FAMILIES[model.family].layers, model)


__all__ = ["FAMILIES", "Family", "family_of", "rules_of"]
