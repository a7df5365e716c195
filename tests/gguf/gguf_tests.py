"""What several of these tests share."""

from collections.abc import Callable
from pathlib import Path

from megatron_ko.convert.gates import Gate
from megatron_ko.convert.gguf_export import Exported

Folder = Callable[..., Path]


def gate(exported: Exported, name: str) -> Gate:
    """One gate of an export."""
    (found,) = [one for one in exported.proof.gates if one.name == name]
    return found
