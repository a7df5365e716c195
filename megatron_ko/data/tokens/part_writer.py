"""Writes the file of one encoded chunk, which ``parts`` reads."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import orjson
import xxhash

from megatron_ko.data.text.records import Rejected
from megatron_ko.data.tokenizer.tokenizer import Encoded
from megatron_ko.data.tokens.parts import Layout, ParsedKeys, PartCounts

_COPY_BYTES = 1 << 22
# How many documents of a block, and then of a part, are samples: decoded text is compared with their hashes.
_SAMPLES = 64


class PartWriter:
    """Writes the ids of the first key as they come, and the rest at the end; ids of other keys wait in spool files.

    Args:
        part: the file.
        layout: of all parts of the job.
    """

    def __init__(self, part: Path, layout: Layout) -> None:
        self._layout = layout
        self._stack = ExitStack()
        self._streams: list[IO[bytes]] = [self._stack.enter_context(part.open("wb"))]
        for _ in range(1, layout.keys):
            spool = tempfile.TemporaryFile(dir=part.parent)  # noqa: SIM115 (closed by the stack)
            self._streams.append(self._stack.enter_context(spool))
        self._tokens, self._bytes = [0] * layout.keys, [0] * layout.keys
        self._lengths: list[list[np.ndarray]] = [[] for _ in range(layout.keys)]
        self._text_bytes: list[list[np.ndarray]] = [[] for _ in range(layout.keys)]
        self._marks: list[list[np.ndarray]] = [[] for _ in range(layout.keys)]
        self._before: list[np.ndarray] = []
        self._rejected: list[Rejected] = []
        self._samples: list[tuple[int, list[str]]] = []
        self._runs: list[tuple[str, int]] = []
        self._documents = 0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, source: str, parsed: ParsedKeys, encoded: Sequence[Encoded]) -> None:
        """The next block."""
        for key, (texts, tokens) in enumerate(zip(parsed.texts, encoded, strict=True)):
            self._streams[key].write(tokens.ids.astype(self._layout.dtype).view(np.uint8).data)
            self._tokens[key] += tokens.ids.size
            self._lengths[key].append(tokens.lengths.astype("<i4"))
            if self._layout.marks:
                assert tokens.marks is not None
                self._marks[key].append(tokens.marks)
            if self._layout.text_bytes:
                sizes = np.fromiter((len(text.encode("utf-8")) for text in texts), dtype="<i4", count=len(texts))
                self._text_bytes[key].append(sizes)
                self._bytes[key] += int(sizes.sum(dtype=np.int64))
            else:
                self._bytes[key] += len("".join(texts).encode("utf-8"))
        number = len(parsed.texts[0])
        for index in range(0, number, max(1, -(-number // _SAMPLES))):
            self._samples.append((self._documents + index, [text_hash(texts[index]) for texts in parsed.texts]))
        self._before.append(parsed.before + np.int32(self._documents))
        self._rejected += parsed.rejected
        self._documents += number
        if self._runs and self._runs[-1][0] == source:
            self._runs[-1] = (source, self._runs[-1][1] + number)
        else:
            self._runs.append((source, number))

    def finish(self) -> PartCounts:
        """Write the sections that ``parts.PartView`` reads after the first ids, and return what it needs to know."""
        stream = self._streams[0]
        for key, ids in enumerate(self._streams):
            if key:
                ids.seek(0)
                shutil.copyfileobj(ids, stream, _COPY_BYTES)
            for array in (*self._lengths[key], *self._text_bytes[key], *self._marks[key]):
                stream.write(array.view(np.uint8).data)
        for array in self._before:
            stream.write(array.astype("<i4").view(np.uint8).data)
        for record in self._rejected:
            stream.write(orjson.dumps(asdict(record), option=orjson.OPT_APPEND_NEWLINE))
        # What follows a colon is detail: "malformed JSON: ..." counts as one reason.
        reasons = Counter(record.reason.split(":")[0] for record in self._rejected)
        first = self._rejected[0] if self._rejected else None
        return {
            "documents": self._documents,
            "rejected": len(self._rejected),
            "tokens": self._tokens,
            "text_bytes": self._bytes,
            "reasons": dict(sorted(reasons.items())),
            "first_rejected": f"{first.reason} at {first.source}:{first.position}" if first else None,
            "runs": self._runs,
            "samples": self._samples[:: max(1, -(-len(self._samples) // _SAMPLES))],
        }


def text_hash(text: str) -> str:
    """xxh3_128 of a text as UTF-8."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8"))
