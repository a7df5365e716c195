"""Turn a dense native model into one with experts, which all start as its feed-forward layer: it computes the same.

Komatsuzaki et al., 2022, arXiv:2212.05055. The weights of the experts that compute a token must add up to 1.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from megatron_ko.artifacts.native import MODEL_FILE, TOKENIZER, WEIGHTS, Pretrained
from megatron_ko.config import ModelConfig, MoeConfig, dump, raise_problems
from megatron_ko.config.checks.moe import check_router
from megatron_ko.convert.gates import Depth, Gate, Proof, require_gates
from megatron_ko.convert.native import NativeReader, TensorBlock, write_native
from megatron_ko.convert.staging import (
    existing_proof,
    require_tokenizer,
    staged_folder,
    told,
    write_folder_lineage,
    write_manifest,
)
from megatron_ko.convert.verify import compare_native
from megatron_ko.errors import ConvertError

MADE_BY = "convert upcycle"
_FAMILIES = {"llama": "mixtral", "qwen3": "qwen3_moe"}
_LAYERS = "decoder.layers."
_EXPERTS = {
    "decoder.layers.mlp.linear_fc1.weight": "decoder.layers.mlp.experts.experts.linear_fc1.weight",
    "decoder.layers.mlp.linear_fc2.weight": "decoder.layers.mlp.experts.experts.linear_fc2.weight",
}
_RENAMED = {"decoder.layers.mlp.linear_fc1.layer_norm_weight": "decoder.layers.pre_mlp_layernorm.weight"}
_ROUTER, _BIAS = "decoder.layers.mlp.router.weight", "decoder.layers.mlp.router.expert_bias"


def upcycle(source: Pretrained, output: Path, moe: MoeConfig, seed: int = 1234, depth: Depth = "full") -> Proof:
    """Write OUTPUT: model.yaml, weights/, tokenizer/, lineage.json, manifest.json; nothing unless the logits agree.

    Args:
        source: the dense model.
        output: must not exist, or be what this conversion made before.
        moe: experts of every layer.
        seed: of the routers' weights, the only ones that are new.
        depth: of the proof.

    Raises:
        ConvertError: the model has experts already, or the weights of its experts would not add up to 1.
        CheckpointError: the model cannot be read.
    """
    require_tokenizer(source)
    model = upcycled(source.model, moe)
    parents, options = [source.ancestor()], {**moe.model_dump(mode="json"), "seed": seed, **told(depth)}
    if (before := existing_proof(output, MADE_BY, parents, options)) is not None:
        return before
    reader = NativeReader(source.weights)
    with staged_folder(output) as folder:
        (folder / WEIGHTS).mkdir()
        parts = list(_parts(reader, model, moe, seed))
        shapes = {part.key: (*_leading(part, model, moe), *part.shape) for part in parts}
        write_native(folder / WEIGHTS, parts, shapes)
        (folder / MODEL_FILE).write_text(dump(model), encoding="utf-8")
        if source.tokenizer is not None:
            shutil.copytree(source.tokenizer, folder / TOKENIZER)
        proof = _prove(source, model, folder / WEIGHTS, parts, depth)
        write_folder_lineage(folder, MADE_BY, model, parents, proof, source.tokenizer, options)
        write_manifest(folder)
    return proof


def _prove(source: Pretrained, model: ModelConfig, weights: Path, parts: list[TensorBlock], depth: Depth) -> Proof:
    """Every tensor is the dense model's, or a router's; and both compute the same."""
    written = NativeReader(weights)
    wrong = [part.key for part in parts if not torch.equal(written.read(part.key, part.index), part.make())]
    tensors = Gate("tensors", len(parts), not wrong, ", ".join(wrong[:5]) or "bit for bit")
    require_gates([tensors])
    logits, gate = compare_native((source.model, source.weights), (model, weights), depth)
    require_gates([tensors, gate])
    return Proof(logits, (tensors, gate))


def upcycled(model: ModelConfig, moe: MoeConfig) -> ModelConfig:
    """The same network with experts.

    Raises:
        ConvertError: it has experts already, or the weights of its experts would not add up to 1.
        ConfigError: the options do not fit together.
    """
    raise_problems(list(check_router(moe)), "the options")
    if model.family not in _FAMILIES:
        raise ConvertError(
            "only a dense model can be upcycled", got=f"family {model.family}", expected=f"one of {list(_FAMILIES)}"
        )
    odd = {
        "softmax_before_topk": moe.softmax_before_topk,
        "topk_scale": moe.topk_scale != 1.0,
        "shared_ffn_hidden_size": moe.shared_ffn_hidden_size > 0,
        "top_k 1": moe.top_k == 1,
    }
    if any(odd.values()):
        raise ConvertError(
            "these experts do not start as the dense model",
            got=", ".join(name for name, there in odd.items() if there),
            expected="weights of the chosen experts that add up to 1, and no other expert",
            remedy="top_k 2 or more, and the other options at their defaults",
        )
    return model.model_copy(update={"family": _FAMILIES[model.family], "moe": moe})


def _leading(part: TensorBlock, model: ModelConfig, moe: MoeConfig) -> tuple[int, ...]:
    return (model.num_layers, moe.num_experts)[: len(part.index)]


def _parts(reader: NativeReader, model: ModelConfig, moe: MoeConfig, seed: int) -> Iterator[TensorBlock]:
    layers = range(model.num_layers)
    for key, shape in reader.shapes.items():
        dtype = reader.dtype(key)
        if not key.startswith(_LAYERS):
            yield TensorBlock(key, (), shape, dtype, _reading(reader, key, ()))
            continue
        for layer in layers:
            read = _reading(reader, key, (layer,))
            if key in _EXPERTS:
                for expert in range(moe.num_experts):
                    yield TensorBlock(_EXPERTS[key], (layer, expert), shape[1:], dtype, read)
            else:
                yield TensorBlock(_RENAMED.get(key, key), (layer,), shape[1:], dtype, read)
    dtype = reader.dtype("decoder.final_layernorm.weight")
    for layer in layers:
        size = (moe.num_experts, model.hidden_size)
        yield TensorBlock(_ROUTER, (layer,), size, dtype, _drawing(size, model.init_std, seed + layer, dtype))
        if moe.expert_bias:
            yield TensorBlock(_BIAS, (layer,), (moe.num_experts,), torch.float32, _zeros(moe.num_experts))


def _reading(reader: NativeReader, key: str, index: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: reader.read(key, index)


def _drawing(size: tuple[int, int], std: float, seed: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: (torch.randn(size, generator=torch.Generator().manual_seed(seed)) * std).to(dtype)


def _zeros(size: int) -> Callable[[], Tensor]:
    return lambda: torch.zeros(size)
