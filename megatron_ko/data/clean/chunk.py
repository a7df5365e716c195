"""One chunk through the pipeline into one part file, with its tally; what runs in a worker."""

import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import orjson

from megatron_ko.data.clean.config import CleanConfig
from megatron_ko.data.clean.pipeline import Pipeline
from megatron_ko.data.clean.tally import TallyJson
from megatron_ko.data.jobs.chunks import Chunk
from megatron_ko.data.text.documents import Rejected, parse_block
from megatron_ko.data.text.inputs import content_hash
from megatron_ko.data.text.writers import DocumentWriter


class RejectedFile(TypedDict):
    """Size and hash of the file of rejected records beside a part."""

    bytes: int
    xxh3_128: str


class CleanStatistics(TypedDict):
    """What is recorded of a cleaned chunk.

    Attributes:
        tally: what the pipeline did.
        sources: (taken, kept, rejected) documents of each source.
        rejected: the file beside the part.
        read: bytes of input that were read for it.
    """

    tally: TallyJson
    sources: dict[str, tuple[int, int, int]]
    rejected: RejectedFile
    read: int


class CleanChunk:
    """Picklable; the stages are made in the worker, once.

    Args:
        config: the pipeline.
        key: text field.
    """

    def __init__(self, config: CleanConfig, key: str) -> None:
        self._config, self._key = config, key

    @cached_property
    def _pipeline(self) -> Pipeline:
        return Pipeline(self._config)

    def __call__(self, chunk: Chunk, part: Path) -> CleanStatistics:
        """Write the kept documents to ``part`` and the rejected records beside it."""
        tally = self._pipeline.tally()
        taken, kept, refused = Counter[str](), Counter[str](), Counter[str]()
        beside = part_rejected_path(part)
        with DocumentWriter(part, self._key) as writer, beside.open("wb") as rejected:
            for block in chunk.blocks:
                parsed = parse_block(block, self._key, keep_fields=True)
                taken[block.source] += len(parsed.texts)
                for document in self._pipeline.run(parsed.documents(block.source), tally):
                    writer.write(document)
                    kept[document.source] += 1
                for record in parsed.rejected:
                    rejected.write(_line(record))
                    tally.rejected[record.reason.split(":")[0]] += 1
                    refused[record.source] += 1
            rejected.flush()
            os.fsync(rejected.fileno())
        tally.check()
        return {
            "tally": tally.to_json(),
            "sources": {source: (taken[source], kept[source], refused[source]) for source in sorted(taken | refused)},
            "rejected": {"bytes": beside.stat().st_size, "xxh3_128": content_hash(beside)},
            "read": chunk.read,
        }


def part_rejected_path(part: Path) -> Path:
    """Where the rejected records of a part are: the same place while the part is written and afterwards."""
    number = part.name.partition("-")[2].partition(".")[0]
    return part.with_name(f"rejected-{number}.jsonl")


def _line(record: Rejected) -> bytes:
    values = {"source": record.source, "position": record.position, "reason": record.reason, "excerpt": record.excerpt}
    return orjson.dumps(values) + b"\n"
