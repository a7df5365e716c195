"""What an earlier version wrote: the present one continues its runs to the last bit, and exports the same tensors."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from isolated import isolated
from safetensors.numpy import load_file
from train_runs import ROOT, Run, machine

from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.convert.hf_export import export_hf

FIXTURES = ROOT / "tests/fixtures/earlier"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Tokenizer, corpora, two runs and a native model, in a folder where they were not made."""
    with tarfile.open(FIXTURES / "earlier.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("name", EXPECTED["runs"])
def test_a_run_goes_on(name: str, earlier: Path) -> None:
    run = Run(earlier / f"{name}.yaml", earlier / name)
    assert run.last_step() == 4
    ended = run.train()
    assert ended.returncode == 0, ended.stderr
    assert f"resuming from {run.folder}/checkpoints/step_00000004" in ended.stderr
    assert run.column("step") == list(range(1, 9))
    expected = EXPECTED["runs"][name]
    losses, norms = run.column("loss_hex")[4:], run.column("grad_norm")[4:]
    if EXPECTED["machine"] == machine():
        assert losses == expected["loss_hex"]
    assert list(map(float.fromhex, losses)) == pytest.approx(list(map(float.fromhex, expected["loss_hex"])), rel=1e-4)
    # Squares are added more exactly now. (Validation is not compared: it reads other sequences.)
    assert norms == pytest.approx(expected["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("name", EXPECTED["tensors"])
def test_a_model_is_exported_as_it_was(name: str, earlier: Path) -> None:
    """Of an imported model, and of a checkpoint."""
    isolated(export_hf, find_pretrained(earlier / name), earlier / "hf")
    tensors = load_file(earlier / "hf/model.safetensors")
    assert {key: hashlib.sha256(tensor.tobytes()).hexdigest() for key, tensor in tensors.items()} == (
        EXPECTED["tensors"][name]
    )
