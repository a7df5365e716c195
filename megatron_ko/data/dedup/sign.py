"""The first pass: of every document a hash of its text, the keys of its bands and a sketch; the text is not kept."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson
import xxhash

from megatron_ko.data.dedup.arrays import write_arrays
from megatron_ko.data.dedup.corpus import ReadStatistics, SourceChunk
from megatron_ko.data.dedup.minhash import band_keys, signatures
from megatron_ko.data.dedup.normalise import Normalisation
from megatron_ko.data.dedup.options import Near
from megatron_ko.data.dedup.shingles import shingle_hashes
from megatron_ko.data.dedup.similarity import sketches
from megatron_ko.data.text.records import Rejected

# Characters that are hashed at once: what is computed stays in the cache.
_BATCH = 1 << 16


class HashRun:
    """Sorted 128-bit hashes of numbered items; an item that repeats an earlier one is listed with that one."""

    def __init__(self) -> None:
        self._first: dict[bytes, int] = {}
        self._again: list[int] = []
        self._of: list[int] = []

    def add(self, text: str, number: int) -> bool:
        """Whether ``text`` is new here. Numbers rise."""
        first = self._first.setdefault(xxhash.xxh3_128_digest(text.encode("utf-8", errors="surrogatepass")), number)
        if first == number:
            return True
        self._again.append(number)
        self._of.append(first)
        return False

    def arrays(self) -> dict[str, np.ndarray]:
        """ "high", "low" [k] halves of the hashes, sorted by "high"; "order" [k] their items; "again", "of" [d]."""
        halves = np.frombuffer(b"".join(self._first), ">u8").astype(np.uint64).reshape(-1, 2)
        order = np.argsort(halves[:, 0], kind="stable")
        numbers = np.fromiter(self._first.values(), np.uint32, len(self._first))
        return {
            "high": halves[order, 0],
            "low": halves[order, 1],
            "order": numbers[order],
            "again": np.array(self._again, np.uint32),
            "of": np.array(self._of, np.uint32),
        }


class SignStatistics(ReadStatistics):
    """What is recorded of a chunk: also how many different texts it has."""

    distinct: int


class SignWork:
    """Writes the array file of one chunk.

    Of every document "bytes" and "positions" [n]; of the hashes what ``HashRun`` gives; for near duplicates, of the m
    documents whose text is new in the chunk: "keys" [bands, m] sorted, "owners" [bands, m] their documents,
    "sketch" and "sketch_offsets" [n + 1]; "rejected", records that were not documents, as lines of JSON.
    """

    def __init__(self, key: str, normalisation: Normalisation, near: Near | None) -> None:
        self._key, self._normalisation, self._near = key, normalisation, near

    def __call__(self, chunk: SourceChunk, part: Path) -> SignStatistics:
        run, sketcher = HashRun(), _Sketcher(self._near)
        sizes: list[int] = []
        positions: list[int] = []
        rejected: list[Rejected] = []
        for parsed in chunk.parsed(self._key):
            rejected += parsed.rejected
            positions += parsed.positions
            for text in parsed.texts:
                number = len(sizes)
                sizes.append(len(text.encode("utf-8", errors="surrogatepass")))
                # A text of which normalisation leaves nothing is compared unchanged.
                comparable = self._normalisation(text)
                comparable = comparable if comparable.strip() else text
                if run.add(comparable, number):
                    sketcher.add(comparable, number)
        lines = b"".join(orjson.dumps(asdict(record)) + b"\n" for record in rejected)
        arrays = {"bytes": np.array(sizes, np.int64), "positions": np.array(positions, np.int64), **run.arrays()}
        arrays |= sketcher.arrays(len(sizes))
        arrays["rejected"] = np.frombuffer(lines, np.uint8)
        write_arrays(part, arrays)
        return {
            "source": chunk.source,
            "documents": len(sizes),
            "distinct": int(arrays["order"].size),
            "bytes": sum(sizes),
            "rejected": dict(Counter(record.reason.split(":")[0] for record in rejected)),
            "read": chunk.chunk.read,
        }


class _Sketcher:
    """Signatures of documents in batches."""

    def __init__(self, near: Near | None) -> None:
        self._near = near
        self._texts: list[str] = []
        self._held = 0
        self._numbers: list[int] = []
        self._keys: list[np.ndarray] = []
        self._sketches: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def add(self, text: str, number: int) -> None:
        if self._near is None:
            return
        self._texts.append(text)
        self._numbers.append(number)
        self._held += len(text)
        if self._held >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        assert self._near is not None
        bands = self._near.bands
        hashes = shingle_hashes(self._texts, self._near.shingles)
        self._keys.append(band_keys(signatures(hashes, bands.hashes), bands.bands, bands.rows))
        sketch = sketches(hashes)
        self._sketches.append(sketch.values)
        self._lengths.append(sketch.lengths)
        self._texts, self._held = [], 0

    def arrays(self, documents: int) -> dict[str, np.ndarray]:
        if self._near is None:
            return {}
        if self._texts or not self._keys:
            self._flush()
        numbers = np.array(self._numbers, np.uint32)
        lengths = np.zeros(documents, np.int64)
        lengths[numbers] = np.concatenate(self._lengths)
        offsets = np.zeros(documents + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        # A document without words has no shingles of words, and is near to nothing.
        some = lengths[numbers] > 0
        keys = np.concatenate(self._keys)[some].T
        numbers = numbers[some]
        sorted_keys = np.empty(keys.shape, np.uint64)
        owners = np.empty(keys.shape, np.uint32)
        for band, row in enumerate(keys):
            order = np.argsort(row, kind="stable")
            sorted_keys[band], owners[band] = row[order], numbers[order]
        return {
            "keys": sorted_keys,
            "owners": owners,
            "sketch": np.concatenate(self._sketches),
            "sketch_offsets": offsets,
        }
