"""A preprocessing run that can be told to kill itself at a given moment; run by test_data_kills.py as a process.

    python -c "import data_kills; data_kills.main()" EVENT FOLDER WORKERS

Every open, rename, removal and creation below FOLDER is an event; at event number EVENT the process sends itself
SIGKILL. With EVENT 0 it runs to the end and prints how many events there were.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from megatron_ko.data.jobs.chunks import Chunk
from megatron_ko.data.tokens import preprocess as preprocessing
from megatron_ko.data.tokens.encode import EncodeChunk

_WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
CHUNK_BYTES = 60_000


class CountedChunk(EncodeChunk):
    """Writes a line for every chunk that is encoded."""

    def __call__(self, chunk: Chunk, part: Path) -> dict[str, Any]:
        with (part.parent.parent.parent / "encoded").open("a", encoding="utf-8") as stream:
            stream.write(f"{part.name}\n")
        return super().__call__(chunk, part)


def options(folder: Path, workers: int) -> preprocessing.PreprocessOptions:
    """What is run: two files into three shards."""
    return preprocessing.PreprocessOptions(
        inputs=(folder / "a.jsonl", folder / "b.jsonl"),
        tokenizer=folder / "tokenizer",
        output=folder / "out" / "data",
        workers=workers,
        shards=3,
        chunk_bytes=CHUNK_BYTES,
    )


def main() -> None:
    deadly, folder, workers = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    watched = str(folder / "out")
    events = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal events
        if event in _WATCHED and str(arguments[0]).startswith(watched):
            events += 1
            if events == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    preprocessing.EncodeChunk = CountedChunk  # type: ignore[misc]
    sys.addaudithook(watch)
    preprocessing.preprocess(options(folder, workers))
    print(events)
