"""A folder that was changed after its export is not taken for the export, whatever its lineage.json says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from native_models import native_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from megatron_ko.artifacts.lineage import read
from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.cli.main import app
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf


def nothing(folder: Path) -> None:
    """The folder as it was exported."""


def a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def theta(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 6e4}))


def a_merge(folder: Path) -> None:
    (folder / "megatron_ko.json").unlink()  # it holds the fingerprint
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    merges = content["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    path.write_text(json.dumps(content))


def a_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")


def a_fine_tune(folder: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        network.model.norm.weight += 0.01
    network.save_pretrained(folder)


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "unchanged": (nothing, set()),
    "weights": (a_byte, {"weights"}),
    "rope_theta": (theta, {"config.json"}),
    "tokenizer": (a_merge, {"tokenizer.json"}),
    "chat template": (a_template, {"chat_template.jinja"}),
    "fine-tune": (a_fine_tune, {"weights", "config.json"}),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Callable[[str], Path]) -> Path:
    """Exports of one model, each changed and imported again."""
    base = tmp_path_factory.mktemp("laundering")
    fields: dict[str, Any] = {"num_layers": 1, "vocab_size": 640}
    isolated(make, base, native_model(base / "first", fields, tokenizer=tokenizer_folder("byte-bpe")))
    return base


def make(base: Path, first: Any) -> None:
    export_hf(first, base / "hf", depth="quick")
    for name, (change, _) in CHANGES.items():
        shutil.copytree(base / "hf", base / name)
        change(base / name)
        import_hf(base / name, base / f"{name}-native", "quick")


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_enters_as_changed(name: str, imported: Path) -> None:
    (source,) = (read(imported / f"{name}-native") or {})["parents"]
    shown = CliRunner().invoke(app, ["lineage", "show", str(imported / f"{name}-native")])
    assert shown.exit_code == 0, shown.exception
    exported = read(imported / "hf")
    if name == "unchanged":
        assert source["record"] == exported
        assert "changed after" not in shown.output and "unproven" not in shown.output
        return
    record = source["record"]
    assert set(record["changed"]) >= CHANGES[name][1] and record["weights"] == source["weights"]
    assert "gates" not in record  # nothing of it was proven
    (before,) = record["parents"]
    assert before["unproven"] and before["record"] == exported
    lines = shown.output.splitlines()
    title = next(number for number, line in enumerate(lines) if f"{imported / name}: changed after it was made" in line)
    assert "not proven" in lines[title + 1] and "unproven, once convert hf-export" in lines[title + 2]


def test_a_chain_stays_honest(imported: Path, tmp_path: Path) -> None:
    """An export of an import of a changed folder has the whole story, down to the first model."""
    isolated(export_hf, find_pretrained(imported / "weights-native"), tmp_path / "again", depth="quick")
    shown = CliRunner().invoke(app, ["lineage", "show", str(tmp_path / "again")])
    assert shown.exit_code == 0 and "unproven, once convert hf-export" in shown.output
    assert str(imported / "first") in shown.output
