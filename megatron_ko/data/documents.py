"""Blocks to documents. A record that is no document is returned as one that was rejected, with where and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from megatron_ko.data.blocks import Block, read_blocks

_EXCERPT = 200


@dataclass(frozen=True)
class Document:
    """Text with its origin: source path and record number (lines from 1, parquet rows from 0)."""

    text: str
    source: str
    position: int


@dataclass(frozen=True)
class Rejected:
    """A record that could not become a document, and the beginning of it."""

    source: str
    position: int
    reason: str
    excerpt: str


@dataclass(frozen=True)
class ParsedBlock:
    """The documents of a block, as lists because there are very many: texts and their record numbers, and the rest."""

    texts: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def read_documents(path: Path, *, key: str = "text", text_unit: str = "line") -> Iterator[Document | Rejected]:
    """Stream the documents of a file in order, and what was rejected; blank lines are no records.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    for block in read_blocks(path, key=key, text_unit=text_unit):
        parsed = parse_block(block, key)
        for text, position in zip(parsed.texts, parsed.positions, strict=True):
            yield Document(text, block.source, position)
        yield from parsed.rejected


def parse_block(block: Block, key: str = "text") -> ParsedBlock:
    """Every record of a block, either as a text or as rejected; blank lines of a text file are neither."""
    parsed = ParsedBlock()
    records: Sequence[object]
    if block.format == "parquet":
        assert isinstance(block.payload, list)
        records = block.payload
    else:
        assert isinstance(block.payload, bytes)
        records = [block.payload] if block.format == "file" else block.payload.split(b"\n")
    if block.format == "jsonl":
        _parse_json(block, records, key, parsed)
    else:
        _parse_text(block, records, key, parsed)
    return parsed


def _parse_json(block: Block, records: Sequence[object], key: str, parsed: ParsedBlock) -> None:
    """The hot loop: what is in order takes the short way, all else is looked at again by ``_json_problem``."""
    loads = orjson.loads
    for position, record in enumerate(records, block.first):
        try:
            text = loads(record)[key]  # type: ignore[arg-type]
            usable = text.strip()
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError):
            usable = ""
        if usable:
            parsed.texts.append(text)
            parsed.positions.append(position)
        elif record.strip():  # type: ignore[attr-defined]
            parsed.rejected.append(Rejected(block.source, position, _json_problem(record, key), _excerpt(record)))


def _json_problem(record: object, key: str) -> str:
    assert isinstance(record, bytes)
    try:
        value = orjson.loads(record)
    except orjson.JSONDecodeError as error:
        return "invalid UTF-8" if _decoded(record) is None else f"malformed JSON: {error.msg}"
    if not isinstance(value, dict):
        return "malformed JSON: not an object"
    if value.get(key) is None:
        return f"no {key!r}"
    return "empty text" if isinstance(value[key], str) else f"{key!r} is no text"


def _parse_text(block: Block, records: Sequence[object], key: str, parsed: ParsedBlock) -> None:
    for position, record in enumerate(records, block.first):
        text = _decoded(record) if isinstance(record, bytes) else None
        if text is not None and block.format == "txt":
            text = text.removesuffix("\r")
        if text is not None and text.strip():
            parsed.texts.append(text)
            parsed.positions.append(position)
        elif text is None or block.format == "parquet":
            reason = _text_problem(record, text, key)
            parsed.rejected.append(Rejected(block.source, position, reason, _excerpt(record)))


def _text_problem(record: object, text: str | None, key: str) -> str:
    if record is None:
        return f"no {key!r}"
    if not isinstance(record, bytes):
        return f"{key!r} is no text"
    return "invalid UTF-8" if text is None else "empty text"


def _decoded(record: bytes) -> str | None:
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _excerpt(record: object) -> str:
    shown = record if isinstance(record, bytes) else str(record).encode("utf-8", errors="backslashreplace")
    return shown[:_EXCERPT].decode("utf-8", errors="backslashreplace")
