"""Adapters that peft has trained, put into the native weights of their model.

peft has adapters of their own for queries, keys and values, and for gate and up; ours share A. So what is imported is
the sum, which is exact, and not adapters to go on with.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_ko.artifacts import lineage
from megatron_ko.artifacts.native import MODEL_FILE, TOKENIZER, WEIGHTS, Pretrained
from megatron_ko.config import dump
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.gates import Proof
from megatron_ko.convert.mapping import MappedBlock, blocks
from megatron_ko.convert.merge import prove_written
from megatron_ko.convert.native import NativeReader, TensorBlock, write_native
from megatron_ko.convert.peft_export import CONFIG
from megatron_ko.convert.peft_export import WEIGHTS as PEFT_WEIGHTS
from megatron_ko.convert.staging import (
    existing_proof,
    require_tokenizer,
    staged_folder,
    write_folder_lineage,
    write_manifest,
)
from megatron_ko.errors import ConvertError
from megatron_ko.models.adapter_weights import LAYERS, merged_weight

MADE_BY = "convert peft-import"
_EXPERTS = ".mlp.experts.experts."
# Options of peft that change what is computed -> the values that mean what is computed here.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "use_rslora": (False, None), "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "modules_to_save": ([], None), "lora_bias": (False, None),
    "layer_replication": ([], None), "trainable_token_indices": ([], None), "target_parameters": ([], None),
    "use_qalora": (False, None),
}  # fmt: skip


@dataclass(frozen=True)
class _Adapter:
    """One layer's, in peft's terms: A, B, and the lengths of the rows with DoRA."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None


def import_peft(source: Path, base: Pretrained, output: Path) -> Proof:
    """Write OUTPUT: model.yaml, weights/, tokenizer/, lineage.json, manifest.json.

    Args:
        source: folder with adapter_config.json and adapter_model.safetensors.
        base: the model that they were trained with.
        output: must not exist, or be what this conversion made before.

    Raises:
        ConvertError: the adapters compute something else than LoRA and DoRA, or do not fit the model.
    """
    require_tokenizer(base)
    scale, adapters = _read(source)
    parents = [base.ancestor(), lineage.ancestor(source, lineage.hash_of_folder(source) or "")]
    if (before := existing_proof(output, MADE_BY, parents)) is not None:
        return before
    reader = NativeReader(base.weights)
    found = {(block.native, block.index): block for block in blocks(rules_of(base.model), base.model)}
    _check_known(adapters, found.values(), source)
    with staged_folder(output) as folder:
        (folder / WEIGHTS).mkdir()
        parts = list(_parts(reader, found, adapters, scale))
        write_native(folder / WEIGHTS, parts, reader.shapes)
        (folder / MODEL_FILE).write_text(dump(base.model), encoding="utf-8")
        if base.tokenizer is not None:
            shutil.copytree(base.tokenizer, folder / TOKENIZER)
        proof = prove_written(base.model, folder / WEIGHTS, parts)
        write_folder_lineage(folder, MADE_BY, base.model, parents, proof, base.tokenizer)
        write_manifest(folder)
    return proof


def _read(source: Path) -> tuple[float, dict[str, _Adapter]]:
    """s, and the adapters by the name of their layer in transformers."""
    try:
        fields = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(source / PEFT_WEIGHTS)
        scale = fields["lora_alpha"] / fields["r"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConvertError(
            "adapters cannot be read", got=f"{source}: {error!r}", expected=f"{CONFIG} and {PEFT_WEIGHTS} of peft"
        ) from None
    odd = {name: fields[name] for name, values in _REQUIRED.items() if name in fields and fields[name] not in values}
    if odd:
        raise ConvertError(
            "these adapters compute something else than LoRA or DoRA",
            got=", ".join(f"{name} {value}" for name, value in odd.items()),
            remedy="merge them with peft (merge_and_unload, save_pretrained), and give the folder to hf-import",
        )
    named = {name.removeprefix("base_model.model.").removesuffix(".weight"): each for name, each in tensors.items()}
    modules = {name.removesuffix(".lora_A") for name in named if name.endswith(".lora_A")}
    kinds = ("lora_A", "lora_B", "lora_magnitude_vector")
    if others := sorted(named.keys() - {f"{module}.{kind}" for module in modules for kind in kinds}):
        raise ConvertError("the folder holds more than adapters of linear layers", got=", ".join(others[:3]))
    return scale, {
        module: _Adapter(
            named[f"{module}.lora_A"], named[f"{module}.lora_B"], named.get(f"{module}.lora_magnitude_vector")
        )
        for module in modules
    }


def _check_known(adapters: dict[str, _Adapter], found: Iterable[MappedBlock], source: Path) -> None:
    known = {
        name.removesuffix(".weight"): shape
        for block in found
        if block.native.startswith(LAYERS)
        for name, shape in zip(block.others, block.mapping.shapes, strict=True)
    }
    wrong = [
        name
        for name, each in adapters.items()
        if known.get(name) != (each.b.shape[0], each.a.shape[1]) or each.a.shape[0] != each.b.shape[1]
    ]
    if wrong or not adapters:
        raise ConvertError(
            "the adapters do not fit the model",
            got=f"{source}: {', '.join(sorted(wrong)[:3]) or 'none'}",
            expected="adapters of linear layers of attention and feed-forward, in the sizes of the model",
        )


def _parts(
    reader: NativeReader,
    found: dict[tuple[str, tuple[int, ...]], MappedBlock],
    adapters: dict[str, _Adapter],
    scale: float,
) -> Iterator[TensorBlock]:
    for key, shape in reader.shapes.items():
        leading = (2 if _EXPERTS in key else 1) if key.startswith(LAYERS) else 0
        for index in product(*(range(size) for size in shape[:leading])):
            block, make = found.get((key, index)), _reading(reader, key, index)
            own = [adapters.get(name.removesuffix(".weight")) for name in block.others] if block else []
            if block is not None and any(own):
                make = partial(_merged, block, make, own, scale)
            yield TensorBlock(key, index, shape[leading:], reader.dtype(key), make)


def _reading(reader: NativeReader, key: str, index: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: reader.read(key, index)


def _merged(
    block: MappedBlock, read: Callable[[], Tensor], adapters: Sequence[_Adapter | None], scale: float
) -> Tensor:
    """Our matrix, of the parts that peft knows; in fp32, then rounded once."""
    weight = read()
    parts = []
    for part, each in zip(block.mapping.split(weight.float()), adapters, strict=True):
        if each is None:
            parts.append(part)
            continue
        change = None if each.magnitude is None else each.magnitude.float().flatten() - part.norm(dim=1)
        parts.append(merged_weight(part, each.a, each.b, scale, change))
    return block.mapping.join(parts).to(weight.dtype)
