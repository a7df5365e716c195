"""Reading a GGUF file back: every constant and every weight against the folder, through tables that are not ours.

The names come from gguf's own map of Hugging Face's names, the constants straight from config.json, and the order of
rows is written down anew, so that a mistake in ``gguf.py`` is not made twice.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_ko.convert.safetensors_folder import SafetensorsFolder

# Keys of the architecture, and the field of config.json that they repeat.
_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
}
# And of the rotary positions.
_ROPE = {
    "rope.freq_base": "rope_theta",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
_ARCHITECTURE = {"llama": "llama", "mixtral": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
_ROUND = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def differing_constants(path: Path, folder: Path) -> Iterator[str]:
    """Hyperparameters of a file that are not those of config.json."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_parameters") or config.get("rope_scaling") or {}),
    }
    if rope.get("rope_type") == "llama3":  # is a tensor
        rope = {"rope_theta": rope["rope_theta"]}
    config.setdefault("num_local_experts", config.get("num_experts"))
    name = _ARCHITECTURE[config["model_type"]]
    expected = {f"{name}.{key}": config.get(field) for key, field in _FIELDS.items()}
    expected |= {f"{name}.{key}": rope.get(field) for key, field in _ROPE.items()}
    expected["general.architecture"] = name
    for key, value in expected.items():
        found = fields[key].contents() if key in fields else None
        if value is not None and not _equal(found, value):
            yield f"{key} is {found}, config.json says {value}"


def _equal(found: Any, value: Any) -> bool:
    if isinstance(found, float):
        return math.isclose(found, float(value), rel_tol=1e-6)
    return bool(found == value)


def differing_weights(path: Path, folder: Path) -> Iterator[str]:
    """Tensors of a file of a float type whose numbers are not the folder's, rounded."""
    import gguf

    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers = config["num_hidden_layers"]
    architecture = next(
        number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == _ARCHITECTURE[config["model_type"]]
    )
    names = gguf.get_tensor_name_map(architecture, layers)
    present = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with SafetensorsFolder(folder) as tensors:
        for source in sorted(tensors.shapes):
            merged, expert = _without_expert(source)
            target = names.get_name(merged, try_suffixes=(".weight",))
            if target not in present:
                if not (config.get("tie_word_embeddings") and target == "output.weight"):
                    yield f"{source} should be {target}, which is not there"
                continue
            stored = present[target]
            data = stored.data if expert is None else stored.data[expert]
            wanted = tensors.read(source)
            if target.startswith("blk") and target.endswith(("attn_q.weight", "attn_k.weight")):
                wanted = wanted[
                    _rows(wanted.shape[0], config) if architecture == gguf.MODEL_ARCH.LLAMA else slice(None)
                ]
            if not _same(data, wanted, stored.tensor_type.name):
                yield f"{target} does not hold {source}"


def _without_expert(name: str) -> tuple[str, int | None]:
    """The name that gguf knows for the stacked experts, and the number of the expert."""
    before, found, after = name.partition(".experts.")
    if not found:
        return name, None
    number, _, projection = after.partition(".")
    if ".block_sparse_moe" in before:
        before = before.removeprefix("model.").replace("block_sparse_moe", "feed_forward")
    return f"{before}.experts.{projection}", int(number)


def _rows(count: int, config: dict[str, Any]) -> list[int]:
    """Which row of Hugging Face's Q or K stands where: halves of a head become neighbours."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    order = []
    for head in range(0, count, width):
        for pair in range(width // 2):
            order += [head + pair, head + pair + width // 2]
    return order


def _same(data: np.ndarray, wanted: torch.Tensor, kind: str) -> bool:
    rounded = wanted.to(_ROUND[kind])
    bits = rounded.view(torch.int16).numpy() if kind == "BF16" else rounded.numpy()
    found = data.view(bits.dtype).reshape(-1, *bits.shape[1:])
    return found.shape[0] <= bits.shape[0] and bool(np.array_equal(found, bits[: found.shape[0]]))
