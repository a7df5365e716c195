"""How one tensor of ours relates to tensors of another format: a few kinds of rules, each reversible.

A family is a table of rules (``convert/families``). A rule names one of our tensors and the others that it is made of.
Tensors of layers and experts are mapped block by block, so that one layer, or one expert of it, is in memory at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from megatron_ko.config import ModelConfig
from megatron_ko.errors import ConvertError

Shape = tuple[int, ...]

# Tensors of ours whose rows are the vocabulary, with as many rows more as the layout that wrote them needed.
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


@dataclass(frozen=True)
class TensorMapping:
    """How a block of ours is split into the others, and joined from them.

    Attributes:
        shapes: shape of each of the others.
        split: our block -> the others, in order.
        join: the others -> our block.
    """

    shapes: tuple[Shape, ...]
    split: Callable[[Tensor], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor]], Tensor]

    @property
    def shape(self) -> Shape:
        """Shape of our block."""
        parts = [torch.empty(shape, device="meta") for shape in self.shapes]
        return tuple(self.join(parts).shape)


@dataclass(frozen=True)
class TensorRule:
    """One tensor of ours, the others that it is made of, and how.

    Attributes:
        native: our name; names that begin with "decoder.layers." have the layer as their first axis.
        others: names, with {layer} and {expert} where they are numbered. {expert} makes the expert our next axis.
        mapping: how they relate, for the dimensions of a model.
    """

    native: str
    others: tuple[str, ...]
    mapping: Callable[[ModelConfig], TensorMapping]


@dataclass(frozen=True)
class MappedBlock:
    """One block of one of our tensors and what it is made of: a rule at one layer and expert."""

    native: str
    index: tuple[int, ...]
    others: tuple[str, ...]
    mapping: TensorMapping


def same(*dims: str) -> Callable[[ModelConfig], TensorMapping]:
    """The same tensor under another name. ``dims`` are names in ``dimensions``."""

    def mapping(model: ModelConfig) -> TensorMapping:
        sizes = dimensions(model)
        shape = tuple(sizes[dim] for dim in dims)
        return TensorMapping((shape,), lambda ours: [ours], lambda others: others[0])

    return mapping


def vocabulary(model: ModelConfig) -> TensorMapping:
    """Rows of the vocabulary: ours are padded with zeros, the others are not."""
    rows, padded = model.vocab_size, model.padded_vocab_size(1)

    def join(others: Sequence[Tensor]) -> Tensor:
        padding = others[0].new_zeros(padded - rows, others[0].shape[1])
        return torch.cat([others[0], padding])

    return TensorMapping(((rows, model.hidden_size),), lambda ours: [ours[:rows]], join)


def gate_up(width: str) -> Callable[[ModelConfig], TensorMapping]:
    """Gate and up projection: ours has the rows of the gate, then those of up."""

    def mapping(model: ModelConfig) -> TensorMapping:
        sizes = dimensions(model)
        shape = (sizes[width], sizes["hidden"])
        return TensorMapping((shape, shape), lambda ours: ours.chunk(2), lambda others: torch.cat(list(others)))

    return mapping


def query_key_value(model: ModelConfig) -> TensorMapping:
    """Query, key and value projections: ours go key/value head by key/value head, the queries of the group first."""
    sizes = dimensions(model)
    groups, width, hidden = model.query_groups, model.kv_channels, sizes["hidden"]
    queries = model.num_attention_heads // groups
    shapes = ((sizes["queries"], hidden), (sizes["keys"], hidden), (sizes["keys"], hidden))

    def split(ours: Tensor) -> list[Tensor]:
        heads = ours.reshape(groups, queries + 2, width, ours.shape[1])
        return [part.reshape(-1, ours.shape[1]) for part in heads.split([queries, 1, 1], dim=1)]

    def join(others: Sequence[Tensor]) -> Tensor:
        heads = [other.reshape(groups, -1, width, hidden) for other in others]
        return torch.cat(heads, dim=1).reshape(-1, hidden)

    return TensorMapping(shapes, split, join)


def dimensions(model: ModelConfig) -> dict[str, int]:
    """Sizes by the names that rules use."""
    moe = model.moe
    return {
        "hidden": model.hidden_size,
        "head": model.kv_channels,
        "queries": model.num_attention_heads * model.kv_channels,
        "keys": model.query_groups * model.kv_channels,
        "ffn": model.ffn_hidden_size,
        "experts": moe.num_experts if moe else 0,
        "shared": moe.shared_ffn_hidden_size if moe else 0,
    }


def blocks(rules: Sequence[TensorRule], model: ModelConfig) -> Iterator[MappedBlock]:
    """Every block of every rule, in the order of the table, layer by layer and expert by expert."""
    for rule in rules:
        mapping = rule.mapping(model)
        axes = _axes(rule, model)
        for index in product(*(range(size) for size in axes.values())):
            numbers = dict(zip(axes, index, strict=True))
            yield MappedBlock(rule.native, index, tuple(name.format(**numbers) for name in rule.others), mapping)


def native_shapes(rules: Sequence[TensorRule], model: ModelConfig) -> dict[str, Shape]:
    """Global shape of every tensor of ours, leading axes included."""
    return {rule.native: (*_axes(rule, model).values(), *rule.mapping(model).shape) for rule in rules}


def other_shapes(rules: Sequence[TensorRule], model: ModelConfig) -> dict[str, Shape]:
    """Shape of every tensor of the other format.

    Raises:
        ConvertError: two rules produce the same tensor.
    """
    found: dict[str, Shape] = {}
    for block in blocks(rules, model):
        for name, shape in zip(block.others, block.mapping.shapes, strict=True):
            if name in found:
                raise ConvertError(f"two rules of family {model.family} produce {name}")
            found[name] = shape
    return found


def check_complete(expected: Mapping[str, Shape], present: Mapping[str, Shape], where: str) -> None:
    """Check that every tensor is there once, in its shape, and no other.

    Args:
        expected: shapes by name, by the table of the family.
        present: shapes by name, as they are stored.
        where: what is being read, for the message.

    Raises:
        ConvertError: naming what is missing, what is unexpected and what has another shape.
    """
    missing, unexpected = sorted(expected.keys() - present.keys()), sorted(present.keys() - expected.keys())
    reshaped = [
        f"{name} is {list(present[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in present and tuple(present[name]) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise ConvertError(
            f"the tensors of {where} are not those of the model",
            got="; ".join(problems),
            expected=f"{len(expected)} tensors, each exactly once",
            remedy="check that configuration and weights belong together",
        )


def _axes(rule: TensorRule, model: ModelConfig) -> dict[str, int]:
    axes = {"layer": model.num_layers} if rule.native.startswith("decoder.layers.") else {}
    if any("{expert}" in name for name in rule.others):
        axes["expert"] = dimensions(model)["experts"]
    return axes


def join_lazily(block: MappedBlock, read: Callable[[str], Tensor]) -> Callable[[], Tensor]:
    """A function that reads the others and makes our block of them."""
    return partial(_join, block, read)


def _join(block: MappedBlock, read: Callable[[str], Tensor]) -> Tensor:
    return block.mapping.join([read(name) for name in block.others])
