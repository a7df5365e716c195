"""Transformer Engine's Python code on a stand-in for its extension: `make test-te` installs it and runs these tests."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REASON = "a process that imports Transformer Engine's stand-in can run nothing else: make test-te runs these tests"


def _asked(config: pytest.Config) -> bool:
    """Whether these tests were asked for, and no others: the stand-in is for a whole process."""
    paths = [Path(str(argument).split("::")[0]).absolute() for argument in config.args]
    return bool(paths) and all(path.is_relative_to(HERE) for path in paths)


def pytest_configure(config: pytest.Config) -> None:
    """Put the stand-in in place before a test module imports megatron-core."""
    if _asked(config):
        from stub import install

        sys.path.append(str(HERE.parent / "train"))  # starts runs
        install()


class NotAsked(pytest.Module):
    """A test module that is not imported."""

    def collect(self) -> list[pytest.Item]:
        """Skip all of it."""
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Import these test modules only where they were asked for; there, nothing is skipped."""
    if module_path.is_relative_to(HERE) and not _asked(parent.config):
        return NotAsked.from_parent(parent, path=module_path)
    return None
