"""Every way in which a folder has been wrong before is caught by a gate that names it, and leaves nothing behind."""

import json
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from native_models import EXPERTS, native_model
from safetensors.torch import load_file, save_file

from megatron_ko.artifacts.native import Pretrained, find_pretrained
from megatron_ko.convert import hf_export
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.convert.verify import ModelPair, prove
from megatron_ko.errors import CheckpointError, ConvertError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END_OF_DOCUMENT, END_OF_TURN = 2, 5
Damage = Callable[[Path], None]
TokenizerFolder = Callable[[str], Path]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with windows and without a tokenizer, in ``native`` and ``hf``."""
    base = tmp_path_factory.mktemp("plain")
    native = native_model(base / "native", {"family": "mixtral", "moe": EXPERTS, "windows": (20,) * 4})
    isolated(export_hf, native, base / "hf")
    return base


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: TokenizerFolder) -> Path:
    """A model with a tokenizer and a chat template, in ``native`` and ``hf``."""
    base = tmp_path_factory.mktemp("chat")
    shutil.copytree(tokenizer_folder("byte-bpe"), base / "tokenizer")
    (base / "tokenizer/chat_template.jinja").write_text(CHATML, encoding="utf-8")
    native = native_model(base / "native", {"vocab_size": 640}, tokenizer=base / "tokenizer")
    isolated(export_hf, native, base / "hf")
    return base


def names_of(folder: Path) -> list[str]:
    return [gate["name"] for gate in json.loads((folder / "lineage.json").read_text())["gates"] if gate["ok"]]


def test_what_is_compared(plain: Path, chat: Path) -> None:
    always = {
        "tensors",
        "finite numbers",
        "parameters",
        "vocabulary rows",
        "keys in transformers",
        "parameters in transformers",
    }
    assert set(names_of(plain / "hf")) == always | {"logits: random ids", "greedy generation"}
    texts = {f"logits: {kind}" for kind in ("random ids", "korean text", "english text", "chat template")}
    tokenizer = {"tokenizer: transformers gives the same ids", "tokenizer: transformers decodes the same text"}
    tokenizer.add("tokenizer.json")
    assert set(names_of(chat / "hf")) == always | texts | tokenizer | {"chat template", "greedy generation"}


def test_generation_ends_with_the_turn_where_there_are_turns(
    chat: Path, tmp_path: Path, tokenizer_folder: TokenizerFolder
) -> None:
    ends = {"config.json": None, "generation_config.json": None}
    for name in ends:
        ends[name] = json.loads((chat / "hf" / name).read_text())["eos_token_id"]
    assert set(ends.values()) == {END_OF_TURN}
    native = native_model(tmp_path / "native", {"vocab_size": 640}, tokenizer=tokenizer_folder("unigram"))
    isolated(export_hf, native, tmp_path / "hf")
    assert json.loads((tmp_path / "hf/generation_config.json").read_text())["eos_token_id"] == END_OF_DOCUMENT


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def config(**fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def swap(state: dict[str, torch.Tensor]) -> None:
    gate, up = (f"model.layers.1.block_sparse_moe.experts.2.{name}.weight" for name in ("w1", "w3"))
    state[gate], state[up] = state[up], state[gate]


def forget_rows(state: dict[str, torch.Tensor]) -> None:
    state["model.embed_tokens.weight"][150:153] = torch.randn(3, 48)


def add_rows(state: dict[str, torch.Tensor]) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.zeros(53, 48)])


ON_WEIGHTS: dict[str, tuple[Damage, str]] = {
    "a tensor dropped": (
        tensors(lambda s: s.pop("model.layers.2.self_attn.k_proj.weight")),
        "k_proj.weight is missing",
    ),
    "a tensor too many": (tensors(lambda s: s.update(bias=torch.zeros(3))), "bias is not expected"),
    "gate and up swapped": (tensors(swap), "2 differ: .*experts.2.w1.weight"),
    "rows that were never trained": (tensors(forget_rows), "1 differ: model.embed_tokens.weight"),
    "rows that pad the vocabulary": (tensors(add_rows), "2 differ: .*lm_head.weight"),
    "a vocabulary with its padding": (config(vocab_size=256), "256 in config.json, 203 trained"),
    "wrong epsilon": (config(rms_norm_eps=2e-5), "not proven: logits: random ids"),
    "wrong theta": (config(rope_parameters={"rope_theta": 4.9e4, "rope_type": "default"}), "not proven: logits"),
    "a window too short by one": (config(sliding_window=20), "not proven: logits: random ids"),
    "a window too long by one": (config(sliding_window=22), "not proven: logits: random ids"),
    "another layer less": (config(num_hidden_layers=3), "keys in transformers"),
}


def compared(native: Pretrained, folder: Path) -> ModelPair:
    return ModelPair(native.model, native.weights, native.tokenizer, folder, written_here=True)


def told(base: Path, table: str, work: Path) -> dict[str, str]:
    """What the proof says of a folder after each damage, all in one process; empty where it says nothing."""
    found = {}
    for number, (name, (damage, _)) in enumerate(globals()[table].items()):
        folder = work / str(number)
        shutil.copytree(base / "hf", folder)
        damage(folder)
        try:
            prove(compared(find_pretrained(base / "native"), folder))
            found[name] = ""
        except ConvertError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def on_weights(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return isolated(told, plain, "ON_WEIGHTS", tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("case", ON_WEIGHTS)
def test_wrong_weights_and_constants_are_named(case: str, on_weights: dict[str, str]) -> None:
    assert re.search(f"(?s){ON_WEIGHTS[case][1]}", on_weights[case])


def test_weights_of_another_model_are_named(plain: Path, tmp_path: Path) -> None:
    other = native_model(tmp_path / "native", {"family": "mixtral", "moe": EXPERTS, "windows": (20,) * 4}, seed=1)
    with pytest.raises(ConvertError, match="not proven: tensors differ"):
        isolated(prove, compared(other, plain / "hf"))


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("'<|im_end|>\n'", "'\n'"))


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-3]  # so rare that no text of the suite has them
    path.write_text(json.dumps(content))


ON_TOKENIZER: dict[str, tuple[Damage, str]] = {
    "a template that ends no turn": (other_template, "not proven: chat template differ"),
    "another tokenizer": (other_tokenizer, "tokenizer.json.*differs in model"),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "only the native model has one"),
}


@pytest.fixture(scope="module")
def on_tokenizer(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return isolated(told, chat, "ON_TOKENIZER", tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("case", ON_TOKENIZER)
def test_wrong_tokenizers_and_templates_are_named(case: str, on_tokenizer: dict[str, str]) -> None:
    assert re.search(ON_TOKENIZER[case][1], on_tokenizer[case])


def test_a_tokenizer_with_more_ids_than_rows(chat: Path, tmp_path: Path) -> None:
    native = native_model(tmp_path / "native", {"vocab_size": 639}, tokenizer=chat / "tokenizer")
    with pytest.raises(ConvertError, match="640 ids, the vocabulary 639 trained rows"):
        isolated(export_hf, native, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_failed_gate_leaves_nothing_and_prints_its_table(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = hf_export.write_config

    def wrong(folder: Path, *args: Any) -> None:
        honest(folder, *args)
        config(rms_norm_eps=1e-3)(folder)

    monkeypatch.setattr(hf_export, "write_config", wrong)
    with pytest.raises(ConvertError) as caught:
        isolated(export_hf, find_pretrained(plain / "native"), tmp_path / "hf")
    assert not list(tmp_path.iterdir()) and caught.value.exit_code == 2
    lines = {line.split("  ")[1]: line for line in str(caught.value).splitlines() if line.count("  ") > 2}
    assert "ok" in lines["tensors"] and "DIFFERS" in lines["logits: random ids"]


def test_a_run_needs_the_tokenizer_of_its_training(chat: Path, tmp_path: Path) -> None:
    native = find_pretrained(chat / "native")
    for run in (replace(native, fingerprint="another"), replace(native, fingerprint="gone", tokenizer=None)):
        with pytest.raises(ConvertError, match="not the one that it was trained with"):
            export_hf(run, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def limited(function: Callable[..., Any], *args: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # stands for a disk that is full
    function(*args)


def test_a_full_disk_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="a weight file cannot be written"):
        isolated(limited, export_hf, find_pretrained(plain / "native"), tmp_path / "hf")
    with pytest.raises(CheckpointError, match="weights cannot be written"):
        isolated(limited, import_hf, plain / "hf", tmp_path / "native")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConvertError, match="the output exists"):
        export_hf(find_pretrained(plain / "native"), tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_native_model_has_no_steps(plain: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        find_pretrained(plain / "native", 7)
