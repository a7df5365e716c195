"""A Transformer Engine that is there and cannot be imported is refused in a sentence, before megatron-core breaks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = {
    "RuntimeError": "Found empty `transformer-engine` meta package installed.",
    "FileNotFoundError": "Could not find shared object file for Transformer Engine torch lib.",
    "ImportError": "transformer_engine_torch.so: undefined symbol: _ZN3c10",
}


@pytest.mark.parametrize("error", WORDS)
def test_a_broken_transformer_engine_is_refused(error: str, tmp_path: Path) -> None:
    """The errors of a package without its extension, in old releases and new, and of one made for another PyTorch."""
    package = tmp_path / "transformer_engine"
    (package / "pytorch").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "pytorch/__init__.py").write_text(f"raise {error}({WORDS[error]!r})")
    process = subprocess.run(
        [sys.executable, "-c", "from megatron_ko.cli.main import run\nrun(lambda: __import__('megatron_ko.parallel'))"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert f"got:      {error}: {WORDS[error]}" in process.stderr
    assert 'pip install --no-build-isolation "transformer-engine[pytorch]"' in process.stderr
    assert "Traceback" not in process.stderr
