"""What a worker does with a chunk of conversations or preferences: read, render, encode, and write a part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from megatron_ko.data.chat.conversation import RecordError, read_conversation
from megatron_ko.data.chat.preference import read_preference
from megatron_ko.data.chat.rows import Row, RowEncoder, RowOptions
from megatron_ko.data.jobs.chunks import Chunk
from megatron_ko.data.text.records import Block, Rejected
from megatron_ko.data.text.whole_records import parse_records
from megatron_ko.data.tokenizer.chat_template import load_template
from megatron_ko.data.tokenizer.tokenizer import Encoded, load_tokenizer
from megatron_ko.data.tokens.encode import parsed_keys
from megatron_ko.data.tokens.identity import RowKind
from megatron_ko.data.tokens.indexed import token_dtype
from megatron_ko.data.tokens.part_writer import PartWriter
from megatron_ko.data.tokens.parts import EncodeStatistics, Layout
from megatron_ko.storage.open_json import JsonObject

CONVERSATIONS = "records"
_EXCERPT = 200
Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class ChatEncodeOptions:
    """How a worker turns records into rows.

    Attributes:
        tokenizer: folder, with a chat template in it.
        kind: what a row is.
        rows: how conversations become rows.
        renamed: fields of the inputs, and what the schema calls them.
    """

    tokenizer: Path
    kind: RowKind
    rows: RowOptions
    renamed: Mapping[str, str]


class RecordEncoder:
    """Records to rows.

    Args:
        options: how.

    Attributes:
        counts: what became of the records, by name.
    """

    def __init__(self, options: ChatEncodeOptions) -> None:
        self._options = options
        self.tokenizer = load_tokenizer(options.tokenizer)
        self._encoder = RowEncoder(self.tokenizer, load_template(self.tokenizer), options.rows)
        self.counts = self._encoder.counts
        read: dict[RowKind, Callable[[JsonObject], Any]] = {
            "chat": self._chat,
            "pairs": self._pairs,
            "verdicts": lambda record: read_preference(record, "verdicts"),
        }
        self._read = read[options.kind]

    def rows(self, records: Sequence[JsonObject]) -> list[list[Row] | RecordError]:
        """The rows of each of some consecutive records, or why it has none."""
        named = [_attempt(self._named, record) for record in records]
        found: list[list[Row] | RecordError] = [_attempt(self._read, record) for record in named]
        if self._options.kind == "verdicts":
            found = [_attempt(self._encoder.responses, one) for one in _with_mismatched(found)]
        self.counts[CONVERSATIONS] += sum(not isinstance(one, RecordError) for one in found)
        return found

    def _named(self, record: JsonObject) -> JsonObject:
        """A record under the names of the schema; a field without a value says nothing about its form."""
        renamed = self._options.renamed
        there = {name: value for name, value in record.items() if value is not None}
        if clash := {renamed[name] for name in there if name in renamed} & {
            name for name in there if name not in renamed
        }:
            raise RecordError(f"two fields of one name: {', '.join(sorted(clash))}, by --map")
        return {renamed.get(name, name): value for name, value in there.items()}

    def _chat(self, record: JsonObject) -> list[Row]:
        return self._encoder.rows(read_conversation(record))

    def _pairs(self, record: JsonObject) -> list[Row]:
        return self._encoder.responses(read_preference(record, "pairs"))


class EncodeConversations:
    """Writes the part of a chunk, in the format of ``tokens.parts``."""

    def __init__(self, options: ChatEncodeOptions) -> None:
        self._options = options
        self._encoder: RecordEncoder | None = None

    def __call__(self, chunk: Chunk, part: Path) -> EncodeStatistics:
        self._encoder = self._encoder or RecordEncoder(self._options)
        self._encoder.counts.clear()
        layout = Layout(1, token_dtype(self._encoder.tokenizer.vocab_size), text_bytes=False, marks=True)
        with PartWriter(part, layout) as writer:
            for block in chunk.blocks:
                self._add(block, writer, self._encoder)
            counts = dict(sorted(self._encoder.counts.items()))
            return {**writer.finish(), "unencodable": {}, "records": counts, "read": chunk.read}

    def _add(self, block: Block, writer: PartWriter, encoder: RecordEncoder) -> None:
        parsed = parse_records(block)
        rejected = list(parsed.rejected)
        rows: list[Row] = []
        positions: list[int] = []
        found = encoder.rows(parsed.records)
        for record, position, one in zip(parsed.records, parsed.positions, found, strict=True):
            if isinstance(one, RecordError):
                rejected.append(Rejected(block.source, position, str(one), str(record)[:_EXCERPT]))
                continue
            rows += one
            positions += [position] * len(one)
        writer.add(block.source, parsed_keys([[row.text for row in rows]], positions, rejected), [_joined(rows)])


def _attempt(function: Callable[[Given], Found], given: Given | RecordError) -> Found | RecordError:
    """What a function makes of something, or why it, or what was before it, failed."""
    if isinstance(given, RecordError):
        return given
    try:
        return function(given)
    except RecordError as error:
        return error


def _with_mismatched(found: Sequence[Any]) -> list[Any]:
    """To each answer with a verdict the answer to another prompt, of the nearest record before it that has one."""
    readable = [number for number, one in enumerate(found) if not isinstance(one, RecordError)]
    made = list(found)
    for place, number in enumerate(readable):
        own = found[number][0]
        others = (found[readable[place - step]][0] for step in range(1, len(readable)))
        other = next((one for one in others if one.differs_from(own)), None)
        alone = RecordError("no other prompt: nothing near it that its answer could be compared with")
        made[number] = alone if other is None else (own, own.with_answer_of(other))
    return made


def _joined(rows: list[Row]) -> Encoded:
    if not rows:
        return Encoded(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    return Encoded(
        np.concatenate([np.asarray(row.ids, dtype=np.int32) for row in rows]),
        np.array([len(row.ids) for row in rows], dtype=np.int64),
        np.concatenate([row.marks for row in rows]),
    )
