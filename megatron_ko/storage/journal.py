"""Renames many files together: the list of renames is written to disk first, so that a restart can complete it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_ko.storage.files import sync_folder

JOURNAL = "publish.json"


def rename_together(folder: Path, moves: Sequence[tuple[Path, Path]]) -> None:
    """Write the list of renames to disk, then move the finished files out of ``folder``, in order."""
    listed = json.dumps([[str(source), str(final)] for source, final in moves], ensure_ascii=False)
    writing = folder / f"{JOURNAL}.writing"
    with writing.open("w", encoding="utf-8") as stream:
        stream.write(listed)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(writing, folder / JOURNAL)
    sync_folder(folder)
    finish_renames(folder)


def finish_renames(folder: Path) -> bool:
    """Complete the renames that a journal lists, skipping those already done; False if there is no journal."""
    path = folder / JOURNAL
    if not path.is_file():
        return False
    moves = [(Path(source), Path(final)) for source, final in json.loads(path.read_text(encoding="utf-8"))]
    for source, final in moves:
        if source.exists():
            os.rename(source, final)
    for parent in {final.parent for _, final in moves}:
        sync_folder(parent)
    return True
