"""Where an output is cut into shards, always between documents; and the names of the shards."""

import glob
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from megatron_ko.data.tokens.parts import PartView
from megatron_ko.errors import DataError
from megatron_ko.storage.files import append_suffix

_DIGITS = "[0-9]" * 5


def shard_name(name: str, number: int, of: int | None) -> str:
    """NAME-00002-of-00008; NAME itself where nothing is cut (``of`` is None)."""
    return name if of is None else f"{name}-{number:05d}-of-{of:05d}"


def any_shards(prefix: Path) -> list[Path]:
    """The .idx files of shards that exist."""
    return sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}-{_DIGITS}-of-{_DIGITS}.idx"))


def find_shards(prefix: Path) -> list[Path]:
    """The prefixes of the data that PREFIX means: itself, its shards, or everything in a folder.

    Raises:
        DataError: a shard is missing.
    """
    if prefix.is_dir():
        return [path.with_name(path.name.removesuffix(".idx")) for path in sorted(prefix.glob("*.idx"))] or [prefix]
    if append_suffix(prefix, ".idx").exists() or not (present := any_shards(prefix)):
        return [prefix]
    number = int(present[0].name.removesuffix(".idx")[-5:])
    expected = [prefix.with_name(shard_name(prefix.name, index, number)) for index in range(number)]
    if missing := [str(path) for path in expected if append_suffix(path, ".idx") not in present]:
        raise DataError(
            f"{prefix} is incomplete",
            got=f"{len(missing)} of {number} shards are missing: {', '.join(missing[:5])}",
            remedy="copy them again, or make them again with megatron-ko data preprocess",
        )
    return expected


def borders(views: Sequence[PartView], shards: int) -> tuple[int, ...]:
    """First document of every shard, and the number of all documents: shards of about equally many tokens.

    Raises:
        DataError: fewer documents than shards.
    """
    documents = [0, *accumulate(view.documents for view in views)]
    tokens = [0, *accumulate(sum(view.statistics["tokens"]) for view in views)]
    if documents[-1] < shards:
        raise DataError(
            f"{documents[-1]} documents cannot be divided into {shards} shards", remedy="fewer --shards, and --restart"
        )
    found = [0]
    for number in range(1, shards):
        target = tokens[-1] * number // shards
        part = min(bisect_right(tokens, target) - 1, len(views) - 1)
        ends = np.cumsum(views[part].all_lengths())
        # The shard begins with the document that contains the target, or ends at it.
        document = documents[part] + int(np.searchsorted(ends, target - tokens[part], side="left"))
        found.append(min(max(document, found[-1] + 1), documents[-1] - (shards - number)))
    found.append(documents[-1])
    assert all(first < last for first, last in pairwise(found))
    return tuple(found)
