"""Weights are named by their hash: the ancestry of a folder, and folders that are not what they were."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from isolated import isolated
from native_models import native_model
from typer.testing import CliRunner

from megatron_ko.artifacts.lineage import draw, read
from megatron_ko.artifacts.native import Pretrained, describe, find_pretrained
from megatron_ko.cli.main import app
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.errors import CheckpointError, ConvertError, KoError


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``first`` -> ``hf`` -> ``native`` -> ``again``."""
    base = tmp_path_factory.mktemp("chain")
    isolated(convert_three_times, native_model(base / "first", {}), base)
    return base


def convert_three_times(first: Pretrained, base: Path) -> None:
    export_hf(first, base / "hf")
    import_hf(base / "hf", base / "native")
    export_hf(find_pretrained(base / "native"), base / "again", "bfloat16")


def test_a_record_holds_all_ancestors(chain: Path) -> None:
    record = read(chain / "again")
    assert record and record["made_by"] == "convert hf-export" and record["options"] == {"dtype": "bfloat16"}
    assert record["parameters"] == 115_152 and len(record["config_sha256"]) == 64 and record["code"]["version"]
    (native,) = record["parents"]
    assert native["weights"] == find_pretrained(chain / "native").weights_hash
    (hf,) = native["record"]["parents"]
    assert hf["path"] == str(chain / "hf") and hf["weights"] == (read(chain / "hf") or {})["weights"]
    (first,) = hf["record"]["parents"]
    assert first["path"] == str(chain / "first") and first["record"] is None


def test_the_tree(chain: Path) -> None:
    lines = list(draw(describe(chain / "again")))
    assert lines[0].startswith(f"{chain / 'again'}: convert hf-export, dtype bfloat16, weights ")
    named = [line.lstrip("│├└─ ").split(":")[0] for line in lines if "weights" in line]
    assert named == [str(chain / name) for name in ("again", "native", "hf", "first")]
    result = CliRunner().invoke(app, ["lineage", "show", str(chain / "again")])
    assert result.exit_code == 0 and result.output.splitlines() == lines
    printed = json.loads(CliRunner().invoke(app, ["lineage", "show", str(chain / "again"), "--json"]).output)
    assert printed["record"] == read(chain / "again")


def test_the_same_conversion_again_does_nothing(chain: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (chain / "hf").iterdir()}
    proof = export_hf(find_pretrained(chain / "first"), chain / "hf")
    assert proof.already and proof.logits and proof.logits.max_difference < 1e-4
    assert {path: path.stat().st_mtime_ns for path in (chain / "hf").iterdir()} == before
    assert import_hf(chain / "hf", chain / "native").already


def test_a_folder_of_other_weights_is_not_written_over(chain: Path, tmp_path: Path) -> None:
    other = native_model(tmp_path / "other", {}, seed=1)
    with pytest.raises(ConvertError, match="of other weights") as caught:
        export_hf(other, chain / "hf")
    assert other.weights_hash in str(caught.value)
    assert find_pretrained(chain / "first").weights_hash in str(caught.value)
    with pytest.raises(ConvertError, match="of other weights"):  # the same ones, in another type
        export_hf(find_pretrained(chain / "first"), chain / "hf", "bfloat16")


def test_a_folder_that_was_changed_is_told(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain / "hf", tmp_path / "hf")
    content = bytearray((tmp_path / "hf/model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "hf/model.safetensors").write_bytes(content)
    with pytest.raises(ConvertError, match="changed after it was made"):
        export_hf(find_pretrained(chain / "first"), tmp_path / "hf")
    with pytest.raises(CheckpointError, match="not those of the lineage"):
        describe(tmp_path / "hf")
    result = CliRunner().invoke(app, ["lineage", "show", str(tmp_path / "hf")])
    assert isinstance(result.exception, CheckpointError) and result.exception.exit_code == 2


def test_a_record_that_names_its_parent_by_files(tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "made_by": "convert gguf",
        "parent": {"path": "/models/hf", "files": {"model.safetensors": "ab" * 16}, "lineage": None},
        "files": [{"name": "m.gguf", "xxh3_128": "cd" * 16}],
    }
    (tmp_path / "lineage.json").write_text(json.dumps(record))
    found = read(tmp_path)
    assert found and found["parents"][0]["path"] == "/models/hf" and len(found["parents"][0]["weights"]) == 32
    assert list(draw({"path": "out", "weights": found["weights"], "record": found}))[-1].startswith("└─ /models/hf")


def test_the_card_says_what_the_lineage_says(chain: Path) -> None:
    card, record = (chain / "again/README.md").read_text(encoding="utf-8"), read(chain / "again")
    assert record and "115,152 parameters, `LlamaForCausalLM`, bfloat16" in card and record["weights"] in card
    assert "training is not recorded" in card and "## 요약" in card and "Loss of" not in card
    assert all(gate["name"] in card for gate in record["gates"])
    assert str(chain) not in card


def test_the_same_weights_have_the_same_hash(chain: Path, tmp_path: Path) -> None:
    isolated(import_hf, chain / "hf", tmp_path / "twin")
    assert find_pretrained(tmp_path / "twin").weights_hash == find_pretrained(chain / "native").weights_hash
    assert export_hf(find_pretrained(tmp_path / "twin"), chain / "again", "bfloat16").already


def test_what_stands_beside_the_weights_counts(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain / "hf", tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    path.write_text(path.read_text().replace("50000.0", "60000.0"))
    with pytest.raises(ConvertError, match=r"changed after it was made(?s:.*)config.json"):
        export_hf(find_pretrained(chain / "first"), tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"files beside the weights(?s:.*)config.json"):
        describe(tmp_path / "hf")
    with pytest.raises(ConvertError, match="another configuration or tokenizer"):
        import_hf(tmp_path / "hf", chain / "native")


@pytest.mark.parametrize(
    "damage",
    [
        {"parents": 5},
        {"parents": ["x"]},
        {"parents": [{"path": "x", "weights": "y", "record": [1]}]},
        {"corpus": [{}]},
        {"gates": "all"},
        {"options": [1]},
        {"tokenizer": "x"},
        {"code": "x"},
    ],
)
def test_a_damaged_record_is_told(damage: dict[str, Any], chain: Path, tmp_path: Path) -> None:
    (tmp_path / "lineage.json").write_text(json.dumps({**(read(chain / "hf") or {}), **damage}))
    with pytest.raises(KoError, match="a lineage is damaged"):
        read(tmp_path)


def test_what_a_kill_left_behind_goes_with_the_next_conversion(chain: Path, tmp_path: Path) -> None:
    left, held, other = (tmp_path / name for name in (".tmp-hf-0123abcd", ".tmp-hf-4567abcd", ".tmp-hf-2-0123abcd"))
    for folder in (left, held, other):
        folder.mkdir()
        (folder / "model.safetensors").touch()
        os.utime(folder, (0, 0))
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as a conversion that still runs
    isolated(export_hf, find_pretrained(chain / "first"), tmp_path / "hf")
    os.close(handle)
    assert {path.name for path in tmp_path.iterdir()} == {"hf", held.name, other.name}
