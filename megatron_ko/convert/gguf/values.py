"""Reading a GGUF file back: every constant and every weight against the folder, through tables that are not ours.

The names come from gguf's own map of Hugging Face's names, the constants straight from config.json, and the order of
rows is written down anew, so that a mistake in ``write.py`` is not made twice.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_ko.convert.families.base import HfConfig
from megatron_ko.convert.hf_files import end_of_turn, read_generation, read_json
from megatron_ko.convert.safetensors_folder import SafetensorsFolder
from megatron_ko.storage.open_json import JsonObject

# Keys of the architecture, and the field of config.json that they repeat.
_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "moe_intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
}
_EXPERTS = {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
# Ids that have a name, in the file and in transformers.
_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_NORMAL, _UNKNOWN, _CONTROL, _ADDED, _BYTE = 1, 2, 3, 4, 6
_ARCHITECTURE = {"llama": "llama", "mixtral": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
_ROUND = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def differing_constants(path: Path, folder: Path) -> Iterator[str]:
    """Hyperparameters of a file that differ from config.json, or that config.json does not have."""
    import gguf

    reader = gguf.GGUFReader(path)
    config = read_json(folder / "config.json")
    name = _ARCHITECTURE[config["model_type"]]
    expected = {f"{name}.{key}": value for key, value in _hyperparameters(config, _rope(config)).items()}
    expected["general.architecture"] = name
    found = {
        key: reader.fields[key].contents() for key in reader.fields if key.startswith(f"{name}.") or key in expected
    }
    vocabulary = found.pop(f"{name}.vocab_size", None)
    if vocabulary != len(reader.fields["tokenizer.ggml.tokens"].data):
        yield f"{name}.vocab_size is {vocabulary}, which is not the number of tokens"
    for key in sorted(expected.keys() | found.keys()):
        if not _equal(found.get(key), expected.get(key)):
            yield f"{key} is {found.get(key)}, config.json says {expected.get(key)}"
    factors = next((tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    if factors is not None and not np.allclose(factors, _stretched(folder, _rope(config)["rope_theta"]), rtol=1e-5):
        yield "rope_freqs.weight does not stretch as config.json says"


def _hyperparameters(config: HfConfig, rope: JsonObject) -> JsonObject:
    """Every key of the architecture, with what config.json says; where it is silent, what transformers takes."""
    heads = config["num_attention_heads"]
    known = {
        **config,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "moe_intermediate_size": config.get("moe_intermediate_size") or config["intermediate_size"],
        "num_local_experts": config.get("num_local_experts") or config.get("num_experts"),
    }
    fields = _FIELDS | (_EXPERTS if known["num_local_experts"] else {})
    expected = {key: known[field] for key, field in fields.items()} | {"rope.freq_base": rope["rope_theta"]}
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        expected |= {"rope.scaling.type": kind, "rope.scaling.factor": rope["factor"]}
    if kind == "yarn":
        expected |= {
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": rope.get("beta_fast") or 32.0,
            "rope.scaling.yarn_beta_slow": rope.get("beta_slow") or 1.0,
        }
    return expected


def _rope(config: HfConfig) -> JsonObject:
    """Rotary positions, from transformers 4's two fields or transformers 5's one."""
    described = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = described.get("rope_type") or described.get("type") or "default"
    return {"rope_theta": config.get("rope_theta", 10000.0), **described, "rope_type": kind}


def _stretched(folder: Path, theta: float) -> np.ndarray:
    """What transformers divides each frequency by, for Llama 3's scaling."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(folder, local_files_only=True), "cpu")
    plain = theta ** -(torch.arange(len(found), dtype=torch.float64) / len(found))
    return (plain / found).numpy()


def _equal(found: Any, value: Any) -> bool:
    if isinstance(found, float) and value is not None:
        return math.isclose(found, float(value), rel_tol=1e-6)
    return bool(found == value)


def differing_tokens(path: Path, folder: Path, oracle: Any) -> Iterator[str]:
    """Where a file contradicts tokenizer.json or transformers about its vocabulary.

    Args:
        path: the file.
        folder: Hugging Face's.
        oracle: transformers' tokenizer of the folder.
    """
    import gguf

    fields = gguf.GGUFReader(path).fields
    found = {key.removeprefix("tokenizer.ggml."): field for key, field in fields.items() if ".ggml." in key}
    known = {name: value.contents() for name, value in found.items()}
    content = read_json(folder / "tokenizer.json")
    ids = oracle.get_vocab()
    for name, attribute in _NAMED.items():
        wanted = ids.get(getattr(oracle, attribute))
        if known.get(f"{name}_token_id") != wanted:
            yield f"{name}_token_id is {known.get(f'{name}_token_id')}, transformers says {wanted}"
    told = read_generation(folder).get("eos_token_id")
    ends = {end_of_turn(oracle), *(told if isinstance(told, list) else [told])}
    for name in ("eot_token_id", "eom_token_id"):
        if name in known and known[name] not in ends:
            yield f"{name} is {known[name]}, at which no answer ends"
    for name in ("add_space_prefix", "add_eos_token"):
        if known.get(name) is not False:
            yield f"{name} is {known.get(name)}"
    spelt = {number: text for text, number in ids.items()}
    added = oracle.added_tokens_decoder
    spaces = "\u2581" if known["model"] == "llama" else " "
    for number, (text, kind) in enumerate(zip(known["tokens"], known["token_type"], strict=True)):
        wanted, sort = spelt.get(number), _kind(number, spelt.get(number), content["model"], added)
        if kind != sort:
            yield f"token {number}, {text!r}, is of kind {kind}, not {sort}"
        if text != (wanted.replace(" ", spaces) if wanted and sort == _NORMAL else wanted):
            yield f"token {number} is {text!r}, transformers says {wanted!r}"
    yield from _differing_order(known, content["model"], spelt)


def _kind(number: int, text: str | None, model: JsonObject, added: dict[int, Any]) -> int:
    if number in added:
        unknown = text == model.get("unk_token") or number == model.get("unk_id")
        return _UNKNOWN if unknown else _CONTROL if added[number].special else _ADDED
    spells_byte = text is not None and model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x")
    return _BYTE if spells_byte else _NORMAL


def _differing_order(known: JsonObject, model: JsonObject, spelt: dict[int, str]) -> Iterator[str]:
    """Merges and scores."""
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    if "merges" in known:
        if known["merges"] != merges:
            yield "the merges are not those of tokenizer.json"
    elif merges:
        numbers = {text: number for number, text in spelt.items()}
        order = [numbers["".join(pair)] for pair in dict.fromkeys(_pairs(model["merges"]))]
        scores = [known["scores"][number] for number in dict.fromkeys(order)]
        if any(one <= two for one, two in pairwise(scores)):
            yield "the scores are not in the order of the merges"
    else:
        pieces = dict(map(tuple, model["vocab"]))
        ordinary = [number for number, kind in enumerate(known["token_type"]) if kind == _NORMAL]
        theirs = np.array([pieces[spelt[number]] for number in ordinary])
        ours = np.array(known["scores"])[ordinary]
        if not np.allclose(ours * theirs.sum(), theirs * ours.sum(), rtol=1e-5):
            yield "the scores are not in proportion to those of tokenizer.json"


def _pairs(merges: list[Any]) -> Iterator[tuple[str, str]]:
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right


def differing_weights(path: Path, folder: Path) -> Iterator[str]:
    """Tensors of a file of a float type whose numbers are not the folder's, rounded."""
    import gguf

    config = read_json(folder / "config.json")
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


def _rows(count: int, config: HfConfig) -> list[int]:
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
