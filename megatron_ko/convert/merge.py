"""Native models of one shape averaged tensor by tensor: the branches of a schedule, or runs that differ in their data.

Wortsman et al., 2022, arXiv:2203.05482.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from megatron_ko.artifacts.native import MODEL_FILE, TOKENIZER, WEIGHTS, Pretrained
from megatron_ko.config import ModelConfig, dump
from megatron_ko.convert.engines import native_engine, native_logits
from megatron_ko.convert.gates import Gate, Proof, require_gates
from megatron_ko.convert.mapping import VOCABULARY, Shape
from megatron_ko.convert.native import NativeReader, TensorBlock, write_native
from megatron_ko.convert.staging import (
    existing_proof,
    require_tokenizer,
    staged_folder,
    write_folder_lineage,
    write_manifest,
)
from megatron_ko.convert.texts import random_samples
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.errors import ConvertError

MADE_BY = "convert merge"
_LAYERS, _EXPERTS = "decoder.layers.", ".mlp.experts.experts."
# Fields of the model section that decide what is trained, not what is computed.
_TRAINING = (
    "init_std", "hidden_dropout", "attention_dropout", "vocab_multiple", "moe.aux_loss", "moe.aux_loss_coeff",
    "moe.z_loss_coeff", "moe.expert_bias_update_rate", "moe.starved_load",
)  # fmt: skip


def merge(sources: Sequence[Pretrained], output: Path, weights: Sequence[float] | None = None) -> Proof:
    """Write OUTPUT: model.yaml, weights/, tokenizer/, lineage.json, manifest.json.

    One layer at a time is in memory. Sums are computed in fp64 and rounded once, to the type of the first model.

    Args:
        sources: two models or more, of one network and one tokenizer.
        output: must not exist, or be what this merge made before.
        weights: of each model, adding up to 1; None: all alike.

    Raises:
        ConvertError: the models differ in more than their weights, or the weights do not add up to 1.
    """
    shares = _shares(len(sources), weights)
    for source in sources:
        require_tokenizer(source)
    first = sources[0]
    readers = [NativeReader(source.weights) for source in sources]
    _check_alike(sources, readers)
    parents, options = [source.ancestor() for source in sources], {"weights": list(shares)}
    if (before := existing_proof(output, MADE_BY, parents, options)) is not None:
        return before
    with staged_folder(output) as folder:
        (folder / WEIGHTS).mkdir()
        shapes = _shapes(first, readers[0])
        parts = list(_parts(readers, shares, shapes))
        write_native(folder / WEIGHTS, parts, shapes)
        (folder / MODEL_FILE).write_text(dump(first.model), encoding="utf-8")
        if first.tokenizer is not None:
            shutil.copytree(first.tokenizer, folder / TOKENIZER)
        proof = prove_written(first.model, folder / WEIGHTS, parts)
        write_folder_lineage(folder, MADE_BY, first.model, parents, proof, first.tokenizer, options)
        write_manifest(folder)
    return proof


def _shares(number: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    if number < 2:
        raise ConvertError("one model has nothing to be merged with", got=f"{number} folder", expected="two or more")
    shares = tuple(weights) if weights else (1 / number,) * number
    if len(shares) != number or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ConvertError(
            "the weights do not fit the models",
            got=f"{', '.join(f'{share:g}' for share in shares)}, which add up to {sum(shares):g}",
            expected=f"{number} weights of 0 or more that add up to 1",
        )
    return shares


def _check_alike(sources: Sequence[Pretrained], readers: Sequence[NativeReader]) -> None:
    """Check that all models have the network, the tensors and the tokenizer of the first."""
    first = sources[0]
    expected = _parts_to_compare(first, readers[0])
    for source, reader in zip(sources[1:], readers[1:], strict=True):
        found = _parts_to_compare(source, reader)
        for name, one in expected.items():
            if one != (other := found[name]):
                raise ConvertError(
                    f"models of different {name} cannot be merged",
                    got=f"{source.origin}: {_difference(one, other)}",
                    expected=f"as in {first.origin}",
                )


def _parts_to_compare(source: Pretrained, reader: NativeReader) -> dict[str, Mapping[str, object]]:
    return {"networks": _explicit(source), "tokenizers": _tokenizer(source), "tensors": _shapes(source, reader)}


def _explicit(source: Pretrained) -> dict[str, object]:
    """The network by its values, without what only training uses."""
    values = source.model.explicit()
    moe = {f"moe.{name}": value for name, value in (values.pop("moe") or {}).items()}
    return {name: value for name, value in {**values, **moe}.items() if name not in _TRAINING}


def _tokenizer(source: Pretrained) -> dict[str, object]:
    return {"fingerprint": None if source.tokenizer is None else load_tokenizer(source.tokenizer).fingerprint}


def _shapes(source: Pretrained, reader: NativeReader) -> dict[str, Shape]:
    """Shapes by name; rows that pad the vocabulary as one rank would."""
    padded = source.model.padded_vocab_size(1)
    return {
        key: (min(shape[0], padded), *shape[1:]) if key in VOCABULARY else shape for key, shape in reader.shapes.items()
    }


def _difference(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return "; ".join(f"{name} {other.get(name)} instead of {one.get(name)}" for name in names[:5])


def _parts(
    readers: Sequence[NativeReader], shares: Sequence[float], shapes: Mapping[str, Shape]
) -> Iterator[TensorBlock]:
    for key, shape in shapes.items():
        leading = (2 if _EXPERTS in key else 1) if key.startswith(_LAYERS) else 0
        for index in product(*(range(size) for size in shape[:leading])):
            make = partial(_mean, readers, shares, key, index, shape[leading:])
            yield TensorBlock(key, index, shape[leading:], readers[0].dtype(key), make)


def _mean(
    readers: Sequence[NativeReader], shares: Sequence[float], key: str, index: tuple[int, ...], shape: Shape
) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float64)
    for reader, share in zip(readers, shares, strict=True):
        part = reader.read(key, index).double()
        total += share * (part[: shape[0]] if key in VOCABULARY else part)
    return total.to(readers[0].dtype(key))


def prove_written(model: ModelConfig, weights: Path, parts: Sequence[TensorBlock]) -> Proof:
    """Check that what was written is what was computed, and that it gives finite logits."""
    written = NativeReader(weights)
    wrong = [part.key for part in parts if not torch.equal(written.read(part.key, part.index), part.make())]
    network, _ = native_engine(model, weights, written.dtype(parts[0].key))
    logits = [native_logits(network, model, tokens) for tokens in random_samples(model)["random ids"]]
    finite = all(bool(part.isfinite().all()) for part in logits)
    gates = (
        Gate("tensors", len(parts), not wrong, ", ".join(wrong[:5]) or "bit for bit"),
        Gate("finite logits", sum(part.shape[0] * part.shape[1] for part in logits), finite),
    )
    require_gates(gates)
    return Proof(None, gates)
