"""The adapters of a run put into the weights that they were trained with: a native model like any other."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from megatron_ko.artifacts.native import MODEL_FILE, TOKENIZER, WEIGHTS, AdapterRun
from megatron_ko.config import ModelConfig, dump
from megatron_ko.convert.engines import native_logits
from megatron_ko.convert.gates import Gate, Proof, require_gates
from megatron_ko.convert.native import NativeReader, TensorBlock, write_native
from megatron_ko.convert.staging import (
    existing_proof,
    require_tokenizer,
    staged_folder,
    write_folder_lineage,
    write_manifest,
)
from megatron_ko.convert.texts import random_samples
from megatron_ko.models.adapter_weights import LAYERS, MARK, merged_weight
from megatron_ko.models.inference import TrainedAdapters, blueprint_of, load_for_inference

MADE_BY = "convert merge-adapter"
_EXPERTS = ".mlp.experts.experts."
# Of all logits, relative: what fp32 may round differently when B A is added to W first.
_LIMIT = 1e-5


def merge_adapter(source: AdapterRun, output: Path) -> Proof:
    """Write OUTPUT: model.yaml, weights/, tokenizer/, lineage.json, manifest.json; nothing unless the logits agree.

    One layer at a time is in memory; products are computed in fp32 and rounded once, to the type of the weights.

    Args:
        source: the adapters and their model.
        output: must not exist, or be what this conversion made before.

    Raises:
        ConvertError: the merged model computes something else.
        CheckpointError: a model cannot be read.
    """
    require_tokenizer(source.run)
    parents = [source.base.ancestor(), source.run.ancestor()]
    if (before := existing_proof(output, MADE_BY, parents)) is not None:
        return before
    # What the run has trained with is what the weights are for from now on, such as a longer context.
    model, tokenizer = source.run.model, source.run.tokenizer
    reader = NativeReader(source.base.weights)
    with staged_folder(output) as folder:
        (folder / WEIGHTS).mkdir()
        parts = list(_parts(reader, NativeReader(source.run.weights), source.adapter.scale))
        write_native(folder / WEIGHTS, parts, reader.shapes)
        (folder / MODEL_FILE).write_text(dump(model), encoding="utf-8")
        if tokenizer is not None:
            shutil.copytree(tokenizer, folder / TOKENIZER)
        proof = _prove(source, folder / WEIGHTS, parts)
        write_folder_lineage(folder, MADE_BY, model, parents, proof, tokenizer)
        write_manifest(folder)
    return proof


def _parts(base: NativeReader, adapters: NativeReader, scale: float) -> Iterator[TensorBlock]:
    for key, shape in base.shapes.items():
        leading = (2 if _EXPERTS in key else 1) if key.startswith(LAYERS) else 0
        prefix = key.removesuffix(".weight") + MARK
        for index in product(*(range(size) for size in shape[:leading])):
            if prefix + "a" in adapters.shapes:
                make = _merging(base, adapters, key, index, scale)
            else:
                make = _reading(base, key, index)
            yield TensorBlock(key, index, shape[leading:], base.dtype(key), make)


def _merging(
    base: NativeReader, adapters: NativeReader, key: str, index: tuple[int, ...], scale: float
) -> Callable[[], Tensor]:
    prefix = key.removesuffix(".weight") + MARK

    def make() -> Tensor:
        a, b = (adapters.read(prefix + name, index) for name in ("a", "b"))
        lengths = prefix + "magnitude_change"
        change = adapters.read(lengths, index) if lengths in adapters.shapes else None
        return merged_weight(base.read(key, index), a, b, scale, change)

    return make


def _reading(base: NativeReader, key: str, index: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: base.read(key, index)


def _prove(source: AdapterRun, weights: Path, parts: Sequence[TensorBlock]) -> Proof:
    """What was written is what was computed, and merging in fp32 changes nothing; rounding is told."""
    written, model = NativeReader(weights), source.run.model
    wrong = [part.key for part in parts if not torch.equal(written.read(part.key, part.index), part.make())]
    samples = random_samples(model)["random ids"]
    apart = _logits(source, model, samples, merge=False)
    merged = _logits(source, model, samples, merge=True)
    network = load_for_inference(blueprint_of(model), weights)
    rounded = [native_logits(network, model, tokens) for tokens in samples]
    positions = sum(part.shape[0] * part.shape[1] for part in apart)
    difference, rounding = _relative(merged, apart), _relative(rounded, apart)
    dtype = str(written.dtype(parts[0].key)).removeprefix("torch.")
    gates = (
        Gate("tensors", len(parts), not wrong, ", ".join(wrong[:5]) or "bit for bit"),
        Gate(
            "logits: merged",
            positions,
            difference <= _LIMIT,
            f"{difference:.1e} from base and adapters in fp32, at most {_LIMIT:.0e}",
        ),
        Gate(
            "logits: as written",
            positions,
            rounding <= _LIMIT if dtype == "float32" else bool(torch.isfinite(torch.tensor(rounding))),
            f"{rounding:.1e}, with weights in {dtype}",
        ),
    )
    require_gates(gates)
    return Proof(None, gates)


def _logits(source: AdapterRun, model: ModelConfig, samples: Sequence[Tensor], merge: bool) -> list[Tensor]:
    adapters = TrainedAdapters(source.adapter, source.run.weights, merge)
    network = load_for_inference(blueprint_of(model), source.base.weights, adapters)
    return [native_logits(network, model, tokens) for tokens in samples]


def _relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Norm of the differences over the norm of what is expected."""
    difference = sum(float((one - other).double().square().sum()) for one, other in zip(found, expected, strict=True))
    return float((difference / sum(float(other.double().square().sum()) for other in expected)) ** 0.5)
