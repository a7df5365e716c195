"""What is declared for a family: its class in transformers, its tensors, and the fields of its config.json."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ko.config import ModelConfig
from megatron_ko.convert.mapping import TensorRule

# config.json of a Hugging Face folder: other programs decide what is in it.
HfConfig = dict[str, Any]
# Fields of our model section, before they are validated.
ModelFields = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One family in Hugging Face's terms.

    Attributes:
        model_type, architecture: what config.json calls it, and the class that loads it.
        layers: rules of the feed-forward part of a layer.
        to_hf: fields of config.json beyond those of all families.
        from_hf: from config.json to fields of our model section beyond those of all families.
        honoured: names of the fields that these two read.
        required: fields that must have one of these values (or be absent), because we compute nothing else.
        code: files of ours that the folder needs, because transformers has no such class.
    """

    model_type: str
    architecture: str
    layers: tuple[TensorRule, ...]
    to_hf: Callable[[ModelConfig], HfConfig] = lambda model: {}
    from_hf: Callable[[HfConfig], ModelFields] = lambda fields: {}
    honoured: frozenset[str] = frozenset()
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    code: tuple[Path, ...] = ()
