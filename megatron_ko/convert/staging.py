"""A folder that gets its name only when everything in it was made and proven."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from megatron_ko.errors import ConvertError
from megatron_ko.models import checkpoint_files as files


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """A new folder beside ``final``, which it becomes when the block ends well and vanishes when it does not.

    Raises:
        ConvertError: ``final`` exists.
    """
    if final.exists():
        raise ConvertError("the output exists", got=final, remedy="choose another folder, or move it away")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".tmp-{final.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """Write manifest.json: size and hash of every file that is in the folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    records = {str(path.relative_to(folder)): files.record_file(path) for path in paths}
    files.write_atomic(folder / files.MANIFEST, orjson.dumps(records, option=orjson.OPT_INDENT_2))
