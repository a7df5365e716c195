"""Native models with random weights, as an import would write them, without anything to import."""

import shutil
from pathlib import Path
from typing import Any

import peer_models  # noqa: F401  (imports transformers before tests fork, so that no child takes seconds for it)
import torch

from megatron_ko.artifacts.native import MODEL_FILE, TOKENIZER, WEIGHTS, Pretrained, find_pretrained
from megatron_ko.config import ModelConfig, dump
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.mapping import VOCABULARY, blocks, native_shapes
from megatron_ko.convert.native import TensorBlock, write_native
from megatron_ko.convert.staging import write_manifest

SIZES: dict[str, Any] = {
    "num_layers": 4, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 6, "num_query_groups": 2,
    "head_dim": 16, "vocab_size": 203, "max_position_embeddings": 300, "rope": {"theta": 5e4}, "init_std": 0.1,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "top_k": 2}
KEURAL: dict[str, Any] = {"family": "keural", "moe": EXPERTS, "windows": (20, None, 20, None), "tie_embeddings": True}


def native_model(
    folder: Path,
    fields: dict[str, Any],
    seed: int = 0,
    tokenizer: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Pretrained:
    """Write a native model of a few fields over ``SIZES``; norms are not 1, so that none can be taken for another."""
    model = ModelConfig.model_validate({**SIZES, **fields})
    rules = rules_of(model)
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for block in blocks(rules, model):
        shape = block.mapping.shape
        tensor = torch.randn(shape, generator=draw) * 0.1 + (len(shape) == 1)
        if block.native in VOCABULARY:
            tensor[model.vocab_size :] = 0
        parts.append(TensorBlock(block.native, block.index, shape, dtype, lambda tensor=tensor: tensor.to(dtype)))  # type: ignore[misc]
    (folder / WEIGHTS).mkdir(parents=True)
    write_native(folder / WEIGHTS, parts, native_shapes(rules, model))
    (folder / MODEL_FILE).write_text(dump(model), encoding="utf-8")
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder / TOKENIZER)
    write_manifest(folder)
    return find_pretrained(folder)
