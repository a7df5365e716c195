"""A Hugging Face folder to a native model, tensor by tensor."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from megatron_ko.artifacts import lineage
from megatron_ko.artifacts.native import MODEL_FILE, TOKENIZER, WEIGHTS
from megatron_ko.config import ModelConfig, dump
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.families.base import HfConfig
from megatron_ko.convert.gates import Depth, Proof
from megatron_ko.convert.hf_config import from_hf_config
from megatron_ko.convert.hf_files import carry_generation, copy_generation, copy_tokenizer, read_generation, read_json
from megatron_ko.convert.mapping import TensorRule, blocks, check_complete, join_lazily, native_shapes, other_shapes
from megatron_ko.convert.native import TensorBlock, write_native
from megatron_ko.convert.safetensors_folder import SafetensorsFolder
from megatron_ko.convert.staging import existing_proof, staged_folder, told, write_folder_lineage, write_manifest
from megatron_ko.convert.tokenizer_class import settle_class
from megatron_ko.convert.verify import ModelPair, prove
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.errors import ConvertError
from megatron_ko.models.rope import inverse_frequencies

MADE_BY = "convert hf-import"
ADAPTER, TOKENIZER_JSON = "adapter_config.json", "tokenizer.json"
OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "tekken.json")


def import_hf(source: Path, output: Path, depth: Depth = "full") -> Proof:
    """Write OUTPUT: model.yaml, weights/, tokenizer/, lineage.json, manifest.json; nothing unless it is the same model.

    Args:
        source: folder with config.json and safetensors.
        output: must not exist, or be what this conversion made before.
        depth: of the proof.

    Raises:
        ConvertError: tensors or configuration are not those of a supported family, or a gate failed.
    """
    _check_source(source)
    fields = read_json(source / "config.json")
    model = from_hf_config(fields, str(source / "config.json"))
    rules = rules_of(model)
    with SafetensorsFolder(source) as tensors:
        _check_rotary(tensors, model)
        shapes = _without_tied_copy(tensors, model)
        check_complete(other_shapes(rules, model), shapes, str(source))
        weights = lineage.hash_of_folder(source) or ""
        parents = [lineage.ancestor(source, weights, beside=lineage.hash_beside(source))]
        if (before := existing_proof(output, MADE_BY, parents, told(depth))) is not None:
            return before
        with staged_folder(output) as folder:
            (folder / WEIGHTS).mkdir()
            write_native(folder / WEIGHTS, _parts(rules, model, tensors), native_shapes(rules, model))
            (folder / MODEL_FILE).write_text(dump(model), encoding="utf-8")
            tokenizer = _copy_tokenizer(source, folder / TOKENIZER, fields)
            if tokenizer is None:  # where generation begins and ends is then kept beside the weights
                copy_generation(source, folder)
                carry_generation(fields, folder)
            proof = prove(ModelPair(model, folder / WEIGHTS, tokenizer, source, written_here=False), depth)
            write_folder_lineage(folder, MADE_BY, model, parents, proof, tokenizer, told(depth))
            write_manifest(folder)
    return proof


def _check_rotary(tensors: SafetensorsFolder, model: ModelConfig) -> None:
    """Check that stored rotary frequencies are those of the configuration, up to the rounding of their type."""
    expected = inverse_frequencies(model.rope, model.kv_channels, 1)
    for name in tensors.rotary:
        found = tensors.read(name).float()
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-6):
            raise ConvertError(
                "stored rotary frequencies are not those of config.json",
                got=f"{name}: {found.flatten()[:4].tolist()}, ...",
                expected=f"{expected[:4].tolist()}, ...",
                remedy="correct rope_theta or rope_scaling in config.json",
            )


def _without_tied_copy(tensors: SafetensorsFolder, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes to account for. Some folders keep the shared output layer a second time; it must then be the same."""
    shapes = tensors.shapes
    if model.tie_embeddings and {"lm_head.weight", "model.embed_tokens.weight"} <= shapes.keys():
        if not torch.equal(tensors.read("lm_head.weight"), tensors.read("model.embed_tokens.weight")):
            raise ConvertError(
                "config.json ties the output layer to the embedding, but the weights differ",
                got="lm_head.weight and model.embed_tokens.weight",
                expected="the same values, or tie_word_embeddings: false",
            )
        del shapes["lm_head.weight"]
    return shapes


def _parts(rules: tuple[TensorRule, ...], model: ModelConfig, tensors: SafetensorsFolder) -> list[TensorBlock]:
    """A tensor of ours has the widest type of those that it is made of."""
    found = list(blocks(rules, model))
    dtypes: dict[str, torch.dtype] = {}
    for block in found:
        for dtype in map(tensors.dtype, block.others):
            dtypes[block.native] = torch.promote_types(dtypes.get(block.native, dtype), dtype)

    def reading(dtype: torch.dtype) -> Callable[[str], Tensor]:
        return lambda name: tensors.read(name).to(dtype)

    return [
        TensorBlock(block.native, block.index, block.mapping.shape, dtype, join_lazily(block, reading(dtype)))
        for block in found
        if (dtype := dtypes[block.native])
    ]


def _copy_tokenizer(source: Path, target: Path, fields: HfConfig) -> Path | None:
    if not (source / TOKENIZER_JSON).is_file():
        return None
    target.mkdir()
    copy_tokenizer(source, target)
    settle_class(target)
    carry_generation(fields, target)
    return target


def _check_source(source: Path) -> None:
    """Refuse, before anything is written, what would be lost or misunderstood."""
    if (source / ADAPTER).is_file():
        raise ConvertError(
            "the folder holds an adapter, which is no model of its own",
            got=source / ADAPTER,
            expected="a Hugging Face folder of a whole model",
            remedy="hf-import its base to BASE, then megatron-ko convert peft-import DIR BASE OUTPUT",
        )
    read_generation(source)
    if (source / TOKENIZER_JSON).is_file():
        load_tokenizer(source)
    elif others := [name for name in OTHER_TOKENIZERS if (source / name).is_file()]:
        raise ConvertError(
            f"the tokenizer of the folder has no {TOKENIZER_JSON}",
            got=f"{source} with {', '.join(others)}",
            expected=TOKENIZER_JSON,
            remedy="AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one; or move the tokenizer away",
        )
