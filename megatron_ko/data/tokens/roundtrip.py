"""Proof that what was written is what was read: some documents of the finished files are decoded again."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ko.data.jobs.job import Part
from megatron_ko.data.tokenizer.tokenizer import load_tokenizer
from megatron_ko.data.tokens.indexed import IndexedReader
from megatron_ko.data.tokens.merge_shard import MergePlan
from megatron_ko.data.tokens.part_writer import text_hash
from megatron_ko.data.tokens.parts import EncodeStatistics
from megatron_ko.errors import DataError

_MOST = 1000
_SHOWN = 8


@dataclass(frozen=True)
class RoundTrip:
    """Samples of a file: how many were decoded, how many gave exactly the text that was read, and the first others."""

    decoded: int
    exact: int
    different: tuple[int, ...] = ()


def check_samples(
    output: MergePlan, parts: Sequence[Part[EncodeStatistics]], borders: Sequence[int], tokenizer: Path
) -> dict[str, RoundTrip]:
    """Decode about a thousand documents, spread over all files, and compare them with the hashes of their texts.

    Returns:
        by the name of the file; a tokenizer that was not trained here may normalise, so its differences are counted.

    Raises:
        DataError: a document is not what was read.
    """
    decoder = load_tokenizer(tokenizer)
    found = {name: [0, 0] for names in output.names for name in names}
    different: dict[str, list[int]] = {name: [] for name in found}
    readers = {name: IndexedReader(output.folder / name) for name in found}
    for document, hashes in _chosen(parts):
        shard = bisect_right(borders, document) - 1
        for key, expected in enumerate(hashes):
            name = output.names[key][shard]
            ids = readers[name][document - borders[shard]].tolist()
            text = decoder.decode(output.tokenizer.without_borders(ids))
            if text_hash(text) != expected:
                different[name].append(document - borders[shard])
            found[name][0] += 1
            found[name][1] += text_hash(text) == expected
            if text_hash(text) != expected and decoder.kind != "huggingface":
                raise DataError(
                    f"document {document - borders[shard]} of {name} does not decode to the text that was read",
                    got=repr(text[:200]),
                    remedy="do not use this output; check memory and disk of the machine",
                )
    return {name: RoundTrip(counts[0], counts[1], tuple(different[name][:_SHOWN])) for name, counts in found.items()}


def _chosen(parts: Sequence[Part[EncodeStatistics]]) -> list[tuple[int, list[str]]]:
    """Number and text hashes (one a key) of documents, evenly spread."""
    first = 0
    samples = []
    for part in parts:
        samples += [(first + number, hashes) for number, hashes in part.statistics["samples"]]
        first += part.statistics["documents"]
    return samples[:: -(-len(samples) // _MOST)]
