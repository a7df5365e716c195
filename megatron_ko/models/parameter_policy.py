"""How each kind of parameter is treated: its initial values, its learning rate, and whether it decays.

One table, used by the initialisation, the optimizer and others. Parameters are named as in checkpoints, where names
depend neither on the layout nor on the back end of the layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_ko.config.optim import ParameterGroup


class Start(Enum):
    """Initial values of a parameter."""

    ONES = "1: norms"
    NORMAL = "normal with init_std"
    RESIDUAL = "normal with init_std / sqrt(2 * layers): projections back to the residual stream (Radford et al., 2019)"
    STATE = "not a parameter, but saved with them: left at 0"


@dataclass(frozen=True)
class Kind:
    """What a kind of parameter has in common.

    Attributes:
        match: pattern of its names.
        start: its initial values.
        decays: whether weight decay applies.
        vocabulary: whether its rows are token ids, followed by padding.
    """

    match: str
    start: Start
    decays: bool = True
    vocabulary: bool = False


# The first match applies.
KINDS = (
    Kind("*.expert_bias", Start.STATE, decays=False),
    Kind("*norm.weight", Start.ONES, decays=False),
    Kind("*.layer_norm_weight", Start.ONES, decays=False),
    Kind("*.linear_proj.weight", Start.RESIDUAL),
    Kind("*.linear_fc2.weight", Start.RESIDUAL),
    Kind("embedding.word_embeddings.weight", Start.NORMAL, vocabulary=True),
    Kind("output_layer.weight", Start.NORMAL, vocabulary=True),
    Kind("*", Start.NORMAL),
)


def kind_of(name: str) -> Kind:
    """The kind of a parameter."""
    return next(kind for kind in KINDS if fnmatchcase(name, kind.match))


@dataclass(frozen=True, order=True)
class Factors:
    """Factors on the learning rate and the weight decay of a parameter."""

    lr: float
    decay: float


@dataclass(frozen=True)
class ParameterPolicy:
    """How the parameters of a run are treated.

    Attributes:
        groups: exceptions in learning rate or decay, by pattern; if several match, the last one applies.
    """

    groups: tuple[ParameterGroup, ...] = ()

    def factors(self, name: str) -> Factors:
        """Factors of the parameter with this name. Kinds that never decay get 0, whatever a group says."""
        matching = [group for group in self.groups if fnmatchcase(name, group.match)]
        lr, decay = (matching[-1].lr_factor, matching[-1].decay_factor) if matching else (1.0, 1.0)
        return Factors(lr, decay if kind_of(name).decays else 0.0)

    def unmatched(self, names: Sequence[str]) -> list[str]:
        """Patterns that match none of these names."""
        return [group.match for group in self.groups if not any(fnmatchcase(name, group.match) for name in names)]


def sharded_parts(chunks: Sequence[torch.nn.Module]) -> Iterator[ShardedTensor]:
    """Parameters and stored states of this rank as parts of global tensors; they share the parameters' memory."""
    for chunk in chunks:
        for value in nested_values(chunk.sharded_state_dict()):
            if isinstance(value, ShardedTensorFactory):  # gate and up in one matrix: views of its two halves
                yield from nested_values(value.build())
            elif isinstance(value, ShardedTensor):
                yield value


def named_parameters(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every parameter of this rank by name, such as ``decoder.layers.3.mlp.linear_fc2.weight``; layers count from 0.

    Call it before the chunks are wrapped for data parallelism, which moves parameters into shared buffers.
    """
    names = {part.data.untyped_storage().data_ptr(): _numbered(part) for part in sharded_parts(chunks)}
    for parameter in (parameter for chunk in chunks for parameter in chunk.parameters()):
        yield names[parameter.untyped_storage().data_ptr()], parameter


def _numbered(part: ShardedTensor) -> str:
    name: str = part.key
    return name.replace("decoder.layers.", f"decoder.layers.{part.global_offset[0]}.", 1)
