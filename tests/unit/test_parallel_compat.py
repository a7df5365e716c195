"""A Transformer Engine that is there and cannot be imported is refused in a sentence, before megatron-core breaks."""

import sys
from pathlib import Path

import pytest

from megatron_ko.errors import LaunchError
from megatron_ko.parallel.compat import prepare_imports

WORDS = {
    "RuntimeError": "Found empty `transformer-engine` meta package installed.",
    "FileNotFoundError": "Could not find shared object file for Transformer Engine torch lib.",
    "ImportError": "transformer_engine_torch.so: undefined symbol: _ZN3c10",
}


@pytest.mark.parametrize("error", WORDS)
def test_a_broken_transformer_engine_is_refused(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors of a package without its extension, in old releases and new, and of one made for another PyTorch."""
    package = tmp_path / "transformer_engine"
    (package / "pytorch").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "pytorch/__init__.py").write_text(f"raise {error}({WORDS[error]!r})")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("transformer_engine", "transformer_engine.pytorch"):  # on a CPU it is hidden
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(LaunchError) as refusal:
        prepare_imports()
    assert f"{error}: {WORDS[error]}" in str(refusal.value)
    assert 'pip install --no-build-isolation "transformer-engine[pytorch]"' in str(refusal.value)
