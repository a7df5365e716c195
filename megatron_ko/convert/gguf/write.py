"""A Hugging Face folder to a GGUF file, tensor by tensor: names, metadata and order of rows that llama.cpp wants."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ko.config import ModelConfig
from megatron_ko.convert.gguf.vocabulary import GgufVocabulary
from megatron_ko.convert.safetensors_folder import SafetensorsFolder
from megatron_ko.errors import ConvertError

# What is stored as it is; the others are made of one of these by llama.cpp's own quantiser.
FLOAT_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

_ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_EXPERT = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
_NAME = re.compile(r"model\.layers\.(\d+)\.(?:(?:mlp|block_sparse_moe)\.experts\.(\d+)\.)?(.+)\.weight")


@dataclass(frozen=True)
class Architecture:
    """A family in llama.cpp's terms.

    Attributes:
        name: general.architecture.
        pairs: rotates neighbouring rows of a head; Hugging Face rotates its halves, so rows of Q and K change places.
    """

    name: str
    pairs: bool


ARCHITECTURES = {
    "llama": Architecture("llama", pairs=True),
    "mixtral": Architecture("llama", pairs=True),
    "qwen3": Architecture("qwen3", pairs=False),
    "qwen3_moe": Architecture("qwen3moe", pairs=False),
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file: Hugging Face's tensors that it is made of (several experts are stacked), and its shape."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]


def check_expressible(model: ModelConfig) -> None:
    """Refuse by name what llama.cpp's graph of the architecture does not compute.

    Raises:
        ConvertError: naming the field.
    """
    longest = model.max_position_embeddings - 1
    scaling, moe = model.rope.scaling, model.moe
    refused = {
        f"family {model.family}": model.family not in ARCHITECTURES,
        "a sliding window": any(window is not None and window < longest for window in model.windows or ()),
        "rope scaling dynamic": scaling is not None and scaling.type == "dynamic",
        "rope scaling yarn with mscale": scaling is not None and scaling.type == "yarn" and scaling.mscale is not None,
        "norm_topk_prob false": moe is not None and moe.softmax_before_topk,
        "shared experts": moe is not None and moe.shared_ffn_hidden_size > 0,
        "expert score sigmoid": moe is not None and moe.score != "softmax",
        "an odd head width": model.kv_channels % 2 == 1,
    }
    if wrong := [name for name, there in refused.items() if there]:
        raise ConvertError(
            "llama.cpp does not compute this network",
            got=", ".join(wrong),
            expected=f"{', '.join(ARCHITECTURES)} with full attention; rotary positions plain, linear, yarn, llama3",
        )


def plan_tensors(shapes: dict[str, tuple[int, ...]], model: ModelConfig, rows: int) -> list[GgufTensor]:
    """Every tensor of the file, in its order.

    Args:
        shapes: Hugging Face's tensors, known to be those of the model.
        model: the network.
        rows: token ids of the tokenizer; rows of the vocabulary beyond them are padding and are left out.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(shapes, key=_order):
        found.setdefault(_renamed(name), []).append(name)
    stored = []
    for target, sources in found.items():
        shape = shapes[sources[0]]
        if target in ("token_embd.weight", "output.weight"):
            shape = (rows, *shape[1:])
        if "_exps." in target:
            shape = (len(sources), *shape)
        stored.append(GgufTensor(target, tuple(sources), shape))
    return stored


def _order(name: str) -> tuple[int, int, str, int]:
    """Embedding, layers, what comes after them; the experts of one projection together and in order."""
    if name in _ENDS:
        return (-1 if "embed" in name else 1 << 30, 0, name, 0)
    found = _NAME.fullmatch(name)
    assert found, f"{name} is in no table"
    return int(found[1]), found[2] is not None, found[3], int(found[2] or 0)


def _renamed(name: str) -> str:
    if name in _ENDS:
        return _ENDS[name]
    found = _NAME.fullmatch(name)
    assert found
    return f"blk.{found[1]}.{(_EXPERT if found[2] else _LAYER)[found[3]]}.weight"


def pair_rows(weight: Tensor, heads: int) -> Tensor:
    """Rows of Q or K in llama.cpp's order: what Hugging Face has at i and i + d/2 of a head stands at 2i and 2i + 1."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def read_stored(stored: GgufTensor, tensors: SafetensorsFolder, model: ModelConfig) -> Tensor:
    """One tensor of the file, in the type that the folder has."""
    parts = [tensors.read(name) for name in stored.sources]
    if "_exps." in stored.name:
        return torch.stack(parts)
    (weight,) = parts
    if ARCHITECTURES[model.family].pairs and stored.name.endswith(("attn_q.weight", "attn_k.weight")):
        weight = pair_rows(weight, weight.shape[0] // model.kv_channels)
    return weight[: stored.shape[0]]


def keeps_f32(stored: GgufTensor) -> bool:
    """Norms and routers are small, and llama.cpp wants them in fp32."""
    return len(stored.shape) == 1 or "ffn_gate_inp" in stored.name


def write_gguf(
    path: Path, folder: Path, model: ModelConfig, vocabulary: GgufVocabulary, kind: str, name: str
) -> list[GgufTensor]:
    """Write one file of a float type; about one tensor is in memory at a time.

    Args:
        path: the file to write.
        folder: Hugging Face's, whose tensors are known to be those of the model.
        model: the network.
        vocabulary: the tokenizer in llama.cpp's terms.
        kind: a key of ``FLOAT_TYPES``.
        name: general.name.

    Raises:
        ConvertError: a weight is not finite, or too large for the type.
    """
    import gguf

    types = {
        "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
        "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
        "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    }
    tensor_type, file_type = types[kind]
    writer = gguf.GGUFWriter(path, ARCHITECTURES[model.family].name)
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(len(vocabulary.tokens))
    _describe(writer, model)
    vocabulary.describe(writer)
    with SafetensorsFolder(folder) as tensors:
        plan = plan_tensors(tensors.shapes, model, len(vocabulary.tokens))
        factors = _rope_factors(model)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.numpy().dtype, factors.numel() * 4)
        for stored in plan:
            full = keeps_f32(stored)
            chosen = gguf.GGMLQuantizationType.F32 if full else tensor_type
            width = 4 if full else FLOAT_TYPES[kind].itemsize
            data = torch.empty(0, dtype=_container(full, kind)).numpy().dtype
            writer.add_tensor_info(stored.name, stored.shape, data, math.prod(stored.shape) * width, raw_dtype=chosen)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        for stored in plan:
            weight = _rounded(read_stored(stored, tensors, model), stored, kind)
            writer.write_tensor_data(weight.view(_container(keeps_f32(stored), kind)).numpy())
    writer.close()
    return plan


def _container(full: bool, kind: str) -> torch.dtype:
    """NumPy has no bfloat16: its bits travel as integers."""
    dtype = torch.float32 if full else FLOAT_TYPES[kind]
    return torch.int16 if dtype == torch.bfloat16 else dtype


def _rounded(weight: Tensor, stored: GgufTensor, kind: str) -> Tensor:
    rounded = weight.to(torch.float32 if keeps_f32(stored) else FLOAT_TYPES[kind]).contiguous()
    if not bool(torch.isfinite(rounded).all()):
        raise ConvertError(
            f"a weight of {stored.sources[0]} is not finite as {kind}",
            got=f"largest magnitude {float(weight.abs().max()):g}",
            expected="finite weights" if kind != "f16" else "at most 65504, or another type: bf16, f32",
        )
    return rounded


def _describe(writer: Any, model: ModelConfig) -> None:
    """The hyperparameters, under the architecture's keys."""
    import gguf

    writer.add_context_length(model.max_position_embeddings)
    writer.add_embedding_length(model.hidden_size)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.ffn_hidden_size)
    writer.add_head_count(model.num_attention_heads)
    writer.add_head_count_kv(model.query_groups)
    writer.add_key_length(model.kv_channels)
    writer.add_value_length(model.kv_channels)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_dimension_count(model.kv_channels)
    writer.add_rope_freq_base(model.rope.theta)
    scaling = model.rope.scaling
    if scaling is not None and scaling.type in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.type))
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling is not None and scaling.type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    if model.moe is not None:
        writer.add_expert_count(model.moe.num_experts)
        writer.add_expert_used_count(model.moe.top_k)
        writer.add_expert_feed_forward_length(model.ffn_hidden_size)


def _rope_factors(model: ModelConfig) -> Tensor | None:
    """Llama 3.1's scaling: what each frequency is divided by, [head / 2]; None for any other.

    Source: transformers' modeling_rope_utils._compute_llama3_parameters.
    """
    scaling = model.rope.scaling
    if scaling is None or scaling.type != "llama3":
        return None
    width = model.kv_channels
    wavelengths = 2 * math.pi * model.rope.theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = ((scaling.original_max_position_embeddings / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).float()


def file_types(path: Path) -> dict[str, str]:
    """Type of every tensor of a file, as llama.cpp names it."""
    import gguf

    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def bits_per_weight(path: Path) -> float:
    """Bits of all tensors of a file, divided by their elements."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    return 8.0 * sum(int(tensor.n_bytes) for tensor in tensors) / sum(int(tensor.n_elements) for tensor in tensors)
