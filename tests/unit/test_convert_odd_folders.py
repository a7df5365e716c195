"""Hugging Face folders as they are found: what is honoured, and what is refused before or by a gate, never a crash."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from native_models import EXPERTS, SIZES, native_model
from peer_models import transformers_model
from safetensors.torch import load_file, save_file

from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.config import ModelConfig
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.errors import KoError

NETWORKS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_embeddings": True},
    "qwen3": {"family": "qwen3"},
    "mixtral": {"family": "mixtral", "moe": EXPERTS},
}
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each network as transformers saves it."""
    base = tmp_path_factory.mktemp("folders")
    isolated(save_all, base)
    return base


def save_all(base: Path) -> None:
    for name, fields in NETWORKS.items():
        torch.manual_seed(1)
        peer = transformers_model(ModelConfig.model_validate({**SIZES, "num_layers": 2, **fields}))
        peer.save_pretrained(base / name)


def config(*dropped: str, **fields: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        content = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps({key: value for key, value in content.items() if key not in dropped}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def file(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def one_nan(state: dict[str, torch.Tensor]) -> None:
    state["model.embed_tokens.weight"][150, 3] = torch.nan  # in no sample


def as_type(dtype: torch.dtype, part: str) -> Damage:
    return tensors(lambda state: state.update({name: state[name].to(dtype) for name in state if part in name}))


def rope(**described: Any) -> Damage:
    return config(rope_parameters={"rope_theta": 5e4, **described})


def frequencies(theta: float) -> Damage:
    stored = (1 / theta ** (torch.arange(0, 16, 2) / 16)).bfloat16()
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(2)]
    return tensors(lambda state: state.update({name: stored.clone() for name in names}))


NO_FILE = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
REFUSED: dict[str, tuple[str, Damage, str]] = {
    "no context": ("llama", config("max_position_embeddings"), "lacks a field.*max_position_embeddings"),
    "no theta": ("llama", config("rope_parameters", rope_theta=None), "wrong type"),
    "text for a window": ("mixtral", config(sliding_window="20"), "wrong type"),
    "a window of nothing": ("mixtral", config(sliding_window=0), "model.windows"),
    "a list": ("llama", file("config.json", "[]"), "config.json cannot be read"),
    "windows that have no width": (
        "qwen3",
        config(layer_types=["sliding_attention", "full_attention"]),
        "transformers could not run",
    ),
    "part of a head rotated": ("llama", rope(rope_type="default", partial_rotary_factor=0.5), "partial_rotary_factor"),
    "rotary positions twice": ("llama", config(rope_scaling={"type": "linear", "factor": 2.0}), "twice"),
    "half of YaRN's factor": ("qwen3", rope(rope_type="yarn", factor=4.0, mscale=0.5), "mscale"),
    "a router that learns nothing": ("mixtral", config(num_experts_per_tok=1), "softmax_before_topk"),
    "no number": ("llama", tensors(one_nan), "finite numbers.*DIFFERS.*embed_tokens"),
    "8 bits": ("llama", as_type(torch.float8_e4m3fn, "proj"), "F8_E4M3"),
    "twice the weights": ("llama", file("model.safetensors.index.json", json.dumps(NO_FILE)), "two sets of weights"),
    "an adapter": ("llama", file("adapter_config.json", "{}"), "adapter"),
    "an output layer for both": (
        "tied",
        tensors(lambda s: s.update({"lm_head.weight": s.pop("model.embed_tokens.weight")})),
        "1 missing: model.embed_tokens.weight; 1 unexpected: lm_head.weight",
    ),
    "a tokenizer without its file": ("llama", file("tokenizer.model", "x"), "has no tokenizer.json"),
    "other rotary frequencies": ("llama", frequencies(1e4), "rotary frequencies are not those"),
    "damaged generation": ("llama", file("generation_config.json", "{"), "generation_config.json is damaged"),
}


def told(base: Path, work: Path) -> dict[str, str]:
    found = {}
    for number, (name, (network, damage, _)) in enumerate(REFUSED.items()):
        folder = work / f"{number}"
        shutil.copytree(base / network, folder)
        damage(folder)
        try:
            import_hf(folder, work / f"native-{number}")
            found[name] = ""
        except KoError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def refused(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    work = tmp_path_factory.mktemp("refused")
    found = isolated(told, folders, work)
    assert sorted(path.name for path in work.iterdir()) == sorted(map(str, range(len(REFUSED))))
    return found


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, refused: dict[str, str]) -> None:
    assert re.search(f"(?s){REFUSED[case][2]}", refused[case]), refused[case]


HONOURED: dict[str, tuple[str, Damage, dict[str, Any]]] = {
    "dropout": ("llama", config(attention_dropout=0.1), {"attention_dropout": 0.1}),
    "a width of windows that are not used": ("qwen3", config(sliding_window=20, use_sliding_window=False), {}),
    "the context before it is stretched": (
        "qwen3",
        rope(rope_type="yarn", factor=4.0),
        {"max_position_embeddings": 1200},
    ),
    "dynamic scaling": (
        "llama",
        config(rope_parameters={"rope_theta": 5e4, "rope_type": "dynamic", "factor": 3.0}, max_position_embeddings=64),
        {"max_position_embeddings": 192},
    ),
    "a type for the norms": ("llama", as_type(torch.bfloat16, "proj"), {}),
    "rotary frequencies": ("llama", frequencies(5e4), {}),
    "a type for the router": ("mixtral", as_type(torch.bfloat16, "experts"), {}),
}


def there_and_back(base: Path, work: Path) -> None:
    for name, (network, change, _) in HONOURED.items():
        folder = work / name
        shutil.copytree(base / network, folder)
        change(folder)
        import_hf(folder, work / f"{name}-native")
        export_hf(find_pretrained(work / f"{name}-native"), work / f"{name}-again")


@pytest.fixture(scope="module")
def honoured(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("honoured")
    isolated(there_and_back, folders, work)
    return work


@pytest.mark.parametrize("case", HONOURED)
def test_honoured_and_the_same_bytes(case: str, honoured: Path) -> None:
    model = find_pretrained(honoured / f"{case}-native").model
    assert {name: getattr(model, name) for name in HONOURED[case][2]} == HONOURED[case][2]
    before, after = (load_file(honoured / name / "model.safetensors") for name in (case, f"{case}-again"))
    before = {name: tensor for name, tensor in before.items() if "inv_freq" not in name}
    assert before.keys() == after.keys()
    assert all(after[name].equal(tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items())


def test_nothing_that_ends_generation_is_lost(
    folders: Path, tmp_path: Path, tokenizer_folder: Callable[[str], Path]
) -> None:
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder("byte-bpe"), tokenizer)
    (tokenizer / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}")
    (tokenizer / "additional_chat_templates").mkdir()
    (tokenizer / "additional_chat_templates/tools.jinja").write_text("{{ messages }}")
    generation = {"eos_token_id": [7, 9], "pad_token_id": 3, "top_k": 5}
    (tokenizer / "generation_config.json").write_text(json.dumps(generation))
    native = native_model(tmp_path / "native", {"num_layers": 1, "vocab_size": 640}, tokenizer=tokenizer)
    isolated(export_hf, native, tmp_path / "hf")
    found = json.loads((tmp_path / "hf/generation_config.json").read_text())
    assert found == {**generation, "eos_token_id": [5, 7, 9], "bos_token_id": 1}
    (tmp_path / "hf/generation_config.json").unlink()  # then config.json says it alone
    config(eos_token_id=[5, 7], pad_token_id=3)(tmp_path / "hf")
    isolated(import_hf, tmp_path / "hf", tmp_path / "again")
    kept = json.loads((tmp_path / "again/tokenizer/generation_config.json").read_text())
    assert kept == {"bos_token_id": 1, "eos_token_id": [5, 7], "pad_token_id": 3}
    assert (tmp_path / "again/tokenizer/additional_chat_templates/tools.jinja").is_file()
