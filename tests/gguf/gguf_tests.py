"""What several of these tests share."""

from collections.abc import Callable
from pathlib import Path

from megatron_ko.convert.gguf_export import Exported
from megatron_ko.convert.gguf_gates import Gate

Folder = Callable[..., Path]


def gate(exported: Exported, file: str, name: str) -> Gate:
    """One gate of an export."""
    (found,) = [one for one in exported.gates if (one.file, one.name) == (file, name)]
    return found
