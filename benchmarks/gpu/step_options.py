"""What every step is told: its folder, its options, the shards, the device."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.runner import write_json

ROOT = Path(__file__).parents[2]
DATA = "GPU_CHECK_DATA"  # environment variable: the folder with tokenizer/ and corpus.bin


@dataclass(frozen=True)
class Given:
    """What a step was started with.

    Attributes:
        folder: its own; it may write there what it likes.
        options: of ``Step.options``.
        data: folder with tokenizer/ and shards of the name corpus.
        device: "cuda", or "cpu" in a rehearsal.
    """

    folder: Path
    options: dict[str, Any]
    data: Path
    device: str

    def tell(self, result: dict[str, Any]) -> None:
        """Keep what is known so far."""
        write_json(self.folder / "result.json", result)


def given() -> Given:
    """Read the command line of a step."""
    _, _, folder, options = sys.argv
    return Given(
        Path(folder), json.loads(options), Path(os.environ[DATA]), os.environ.get("MEGATRON_KO_DEVICE", "cuda")
    )
