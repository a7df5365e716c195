"""Keural in transformers: its own modelling file computes its formulas, generates, trains, and comes back unchanged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from keural_reference import keural_logits
from native_models import KEURAL, SIZES, native_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.config import ModelConfig, load_model_config
from megatron_ko.convert import hf_files
from megatron_ko.convert.families.keural import is_mixtral
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.errors import ConvertError

ROOT = Path(__file__).parents[2]
TOKENS = torch.randint(203, (2, 70), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``native`` and a folder ``hf`` made of it."""
    base = tmp_path_factory.mktemp("keural")
    proof = isolated(export_hf, native_model(base / "native", KEURAL), base / "hf")
    assert proof.logits and proof.logits.max_difference < 1e-4
    return base


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def stacked(folder: Path) -> dict[str, Tensor]:
    """The weights under the names that the written-out formulas use."""
    state = load_file(folder / "model.safetensors")
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        experts = [
            {w: state.pop(f"{prefix}block_sparse_moe.experts.{e}.{w}.weight") for w in ("w1", "w2", "w3")}
            for e in range(4)
        ]
        state[f"{prefix}mlp.gate.weight"] = state.pop(f"{prefix}block_sparse_moe.gate.weight")
        state[f"{prefix}mlp.experts.gate_up_proj"] = torch.stack([torch.cat([x["w1"], x["w3"]]) for x in experts])
        state[f"{prefix}mlp.experts.down_proj"] = torch.stack([x["w2"] for x in experts])
    return state


def check_formulas(folder: Path) -> None:
    network = load(folder)
    with torch.no_grad():
        logits = network(TOKENS).logits
    sizes = {"heads": 6, "groups": 2, "top_k": 2, "theta": 5e4, "eps": 1e-5}
    expected = keural_logits(TOKENS, stacked(folder), windows=(20, None, 20, None), **sizes)  # type: ignore[arg-type]
    assert (logits - expected).abs().max() < 1e-4 and logits.std() > 0.1


def check_cache(folder: Path) -> None:
    """Beyond the window, in a batch padded on the left, greedy and with beams."""
    network = load(folder)
    mask = torch.ones_like(TOKENS)
    mask[0, :9] = 0
    given: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    with_cache = network.generate(TOKENS, **given)
    assert with_cache.shape == (2, 110)
    assert with_cache.equal(network.generate(TOKENS, use_cache=False, **given))
    static = network.generate(TOKENS, cache_implementation="static", disable_compile=True, **given)
    assert with_cache.equal(static)
    alone = network.generate(TOKENS[:1, 9:], **{**given, "attention_mask": None})
    assert with_cache[0, 9:].equal(alone[0]), "padding must not change a continuation"
    beams = {"num_beams": 3, **given}
    assert network.generate(TOKENS, **beams).equal(network.generate(TOKENS, use_cache=False, **beams))
    eager = load(folder)
    eager.set_attn_implementation("eager")
    assert torch.allclose(eager(TOKENS, mask).logits[1], network(TOKENS, mask).logits[1], atol=1e-4)


def check_training(folder: Path) -> None:
    """Gradients are the same with recomputation, and a step makes the loss smaller."""
    gradients = []
    for recompute in (False, True):
        network = load(folder).train()
        if recompute:
            network.gradient_checkpointing_enable()
        loss = network(TOKENS, labels=TOKENS).loss
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
        torch.optim.SGD(network.parameters(), lr=0.1).step()
        assert network(TOKENS, labels=TOKENS).loss < loss
    assert all(gradients[0][name].allclose(gradient, atol=1e-6) for name, gradient in gradients[1].items())


def check_saving(folder: Path, again: Path) -> None:
    load(folder).save_pretrained(again)
    assert {path.name for path in again.glob("*.py")} == {path.name for path in folder.glob("*.py")}
    with torch.no_grad():
        assert load(again)(TOKENS).logits.equal(load(folder)(TOKENS).logits)


def test_it_computes_its_formulas(exported: Path) -> None:
    isolated(check_formulas, exported / "hf")


def test_it_generates_with_a_cache(exported: Path) -> None:
    isolated(check_cache, exported / "hf")


def test_it_trains(exported: Path) -> None:
    isolated(check_training, exported / "hf")


def test_what_transformers_saves_comes_back_unchanged(exported: Path, tmp_path: Path) -> None:
    isolated(check_saving, exported / "hf", tmp_path / "saved")
    isolated(import_hf, tmp_path / "saved", tmp_path / "native")
    assert load_model_config(tmp_path / "native/model.yaml") == load_model_config(exported / "native/model.yaml")
    isolated(export_hf, find_pretrained(tmp_path / "native"), tmp_path / "again")
    before, after = (load_file(folder / "model.safetensors") for folder in (exported / "hf", tmp_path / "again"))
    assert before.keys() == after.keys() and all(after[name].equal(tensor) for name, tensor in before.items())


def test_code_of_others_does_not_run(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "hf", tmp_path / "hf")
    with (tmp_path / "hf/modeling_keural.py").open("a") as file:
        file.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    isolated(import_hf, tmp_path / "hf", tmp_path / "native")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("windows", "context", "plain"),
    [((20, None, 20, None), 21, True), ((20, None, 20, None), 22, False), ((20,) * 4, 300, True)],
)
def test_plain_mixtral_where_it_computes_the_same(
    windows: tuple[int | None, ...], context: int, plain: bool, tmp_path: Path
) -> None:
    fields = {**KEURAL, "windows": windows, "max_position_embeddings": context}
    isolated(export_hf, native_model(tmp_path / "native", fields), tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["model_type"] == ("mixtral" if plain else "keural")
    assert (tmp_path / "hf/modeling_keural.py").exists() != plain
    assert ("plain Mixtral" in (tmp_path / "hf/README.md").read_text()) == plain


def test_windows_of_two_widths_are_refused(tmp_path: Path) -> None:
    native = native_model(tmp_path / "native", {**KEURAL, "windows": (20, None, 30, None)})
    with pytest.raises(ConvertError, match="one width"):
        isolated(export_hf, native, tmp_path / "hf")
    assert not is_mixtral(ModelConfig.model_validate({**SIZES, **KEURAL}))


def test_a_window_that_is_wrong_by_one_is_caught(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = hf_files.to_hf_config
    monkeypatch.setattr(
        hf_files,
        "to_hf_config",
        lambda *args, **kwargs: (fields := honest(*args, **kwargs)) | {"sliding_window": fields["sliding_window"] - 1},
    )
    with pytest.raises(ConvertError, match="not proven: logits: random ids"):
        isolated(export_hf, find_pretrained(exported / "native"), tmp_path / "hf")
    assert not list(tmp_path.iterdir())
