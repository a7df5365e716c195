"""Several types in one folder: those that pass are kept, those that fail are named, a rerun makes what is missing."""

import json
from pathlib import Path

import pytest
from gguf_tests import Folder
from typer.testing import CliRunner

from megatron_ko.artifacts.native import describe
from megatron_ko.cli.main import app
from megatron_ko.convert.gguf import export as gguf_export
from megatron_ko.convert.gguf import gates
from megatron_ko.convert.gguf.export import export_gguf
from megatron_ko.convert.gguf.gates import Limits
from megatron_ko.errors import ConvertError

Patch = pytest.MonkeyPatch


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.gguf")}


def test_types_that_pass_are_kept_and_a_rerun_makes_the_others(
    folder: Folder, tmp_path: Path, monkeypatch: Patch
) -> None:
    source, out = folder(), tmp_path / "out"
    words = ["convert", "gguf", str(source), str(out), "--types", "f32,f16,q8_0"]
    with monkeypatch.context() as patch:
        patch.setitem(gates.LIMITS, "q8_0", Limits(None, 1.0, 0.0, 0.0))
        told = CliRunner().invoke(app, words)
    assert told.exit_code == 2 and "not written, because a gate failed: q8_0" in told.output
    assert "q8_0: KL divergence" in told.output and "DIFFERS" in told.output
    kept = {"lineage.json", "Modelfile", "out-f32.gguf", "out-f16.gguf"}
    assert names(out) == kept and "./out-f16.gguf" in (out / "Modelfile").read_text()
    before = stamps(out)

    made: list[list[str]] = []
    honest = gguf_export._write_all
    monkeypatch.setattr(gguf_export, "_write_all", lambda *given: (made.append([*given[4]]), honest(*given))[1])
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 0, told.exception
    assert made == [["q8_0"]] and names(out) == kept | {"out-q8_0.gguf"}
    assert before.items() <= stamps(out).items()
    assert "./out-q8_0.gguf" in (out / "Modelfile").read_text()
    found = json.loads(told.stdout.splitlines()[-1])
    assert [one["kind"] for one in found["files"]] == ["f32", "f16", "q8_0"]
    assert {gate["name"].partition(":")[0] for gate in found["gates"]} >= {"f32", "f16", "q8_0", "ids of text"}
    describe(out)  # the lineage is that of all files

    assert export_gguf(source, out, ["f16", "q8_0"]).proof.already and len(made) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_a_rerun_that_fails_again_leaves_what_was_there(folder: Folder, tmp_path: Path, monkeypatch: Patch) -> None:
    source, out = folder(), tmp_path / "out"
    export_gguf(source, out, ["f32"])
    before = stamps(out), (out / "lineage.json").read_bytes()
    monkeypatch.setitem(gates.LIMITS, "f16", Limits(None, 1.0, 0.0, 0.0))
    with pytest.raises(ConvertError, match=r"f16: KL divergence(?s:.*)differ"):
        export_gguf(source, out, ["f32", "f16"])
    assert (stamps(out), (out / "lineage.json").read_bytes()) == before
    with pytest.raises(ConvertError, match="made in another way"):
        export_gguf(source, out, ["f32", "f16"], text="other held-out text " * 20)
