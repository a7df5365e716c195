"""What a configuration is refused with."""

from pathlib import Path

import pytest

from megatron_ko.config import load_config
from megatron_ko.errors import ConfigError


def problems(run_file: Path, *overrides: str) -> str:
    """All that is told about a run file with overrides; it must be refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(run_file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)
