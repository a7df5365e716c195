"""A native model to a Hugging Face folder that transformers loads without code of ours, tensor by tensor."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import torch
from torch import Tensor

from megatron_ko.convert.families import FAMILIES
from megatron_ko.convert.families.common import around
from megatron_ko.convert.hf_config import to_hf_config
from megatron_ko.convert.hf_import import TOKENIZER_FILES
from megatron_ko.convert.mapping import Block, blocks, check_complete, native_shapes, other_shapes
from megatron_ko.convert.native import NativeReader
from megatron_ko.convert.safetensors_folder import bytes_of, write_shards
from megatron_ko.convert.staging import staged_folder
from megatron_ko.convert.verify import LogitGate, compare_logits
from megatron_ko.errors import ConvertError
from megatron_ko.models.pretrained import LINEAGE, Pretrained

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


def export_hf(source: Pretrained, output: Path, dtype: str | None = None, shard_bytes: int = 2 << 30) -> LogitGate:
    """Write OUTPUT: safetensors, config.json, generation_config.json, tokenizer, lineage.json; nothing unless proven.

    Args:
        source: the native model.
        output: must not exist.
        dtype: "float32", "bfloat16", "float16"; None: as the weights are stored.
        shard_bytes: largest weight file, and about what is held in memory.

    Raises:
        ConvertError: the checkpoint does not hold what its configuration says, the class in transformers cannot compute
            the network, or the logits differ.
    """
    model = source.model
    if dtype is not None and dtype not in DTYPES:
        raise ConvertError("unknown type of tensors", got=dtype, expected=f"one of {', '.join(DTYPES)}")
    if model.family not in FAMILIES:
        raise ConvertError(
            f"family {model.family} has no class in transformers", expected=f"one of {', '.join(FAMILIES)}"
        )
    rules = around(FAMILIES[model.family].layers, model)
    reader = NativeReader(source.weights)
    stored = dict(reader.shapes)
    for name in _VOCABULARY:  # padded for the layout that wrote it
        if name in stored and stored[name][0] >= model.vocab_size:
            stored[name] = (model.padded_vocab_size(1), *stored[name][1:])
    check_complete(native_shapes(rules, model), stored, str(source.weights))
    target = DTYPES[dtype] if dtype else reader.dtype("decoder.final_layernorm.weight")
    shapes = other_shapes(rules, model)
    ordered = sorted(blocks(rules, model), key=_layer)
    sizes = {name: bytes_of(shapes[name], target) for block in ordered for name in block.others}
    with staged_folder(output) as folder:
        write_shards(folder, _tensors(ordered, reader, target), sizes, shard_bytes)
        _write_json(folder, source, str(target).removeprefix("torch."))
        gate = compare_logits(model, source.weights, folder)
        lineage = {
            "made_by": "convert hf-export",
            "parent": {"path": str(source.origin.resolve()), "step": source.step, "tokens": source.tokens},
            "logits": gate.describe(),
        }
        (folder / LINEAGE).write_bytes(orjson.dumps(lineage, option=orjson.OPT_INDENT_2))
    return gate


def _layer(block: Block) -> int:
    """Order of files: embedding, layers, what comes after them."""
    if block.index:
        return block.index[0]
    return -1 if block.native.startswith("embedding.") else 1 << 30


def _tensors(ordered: list[Block], reader: NativeReader, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for block in ordered:
        parts = block.kind.split(reader.read(block.native, block.index))
        for name, part in zip(block.others, parts, strict=True):
            yield name, part.to(dtype)


def _write_json(folder: Path, source: Pretrained, dtype: str) -> None:
    bos = eos = None
    if source.tokenizer is not None:
        for name in TOKENIZER_FILES:
            if (source.tokenizer / name).is_file():
                shutil.copyfile(source.tokenizer / name, folder / name)
        bos, eos = _ends(source.tokenizer)
    config = to_hf_config(source.model, dtype=dtype, bos=bos, eos=eos)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not (folder / "generation_config.json").exists():
        ends = {"bos_token_id": bos, "eos_token_id": eos}
        generation = {name: number for name, number in ends.items() if number is not None}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _ends(tokenizer: Path) -> tuple[int | None, int | None]:
    """Ids of the begin and end tokens that tokenizer_config.json names."""
    named = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {token["content"]: int(token["id"]) for token in added}
    spelled = (named.get("bos_token"), named.get("eos_token"))
    bos, eos = (ids.get(token["content"] if isinstance(token, dict) else token) for token in spelled)
    return bos, eos
