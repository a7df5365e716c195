"""Blocks to documents. A record that is not a document is returned as rejected, with its place and the reason."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from megatron_ko.data.text.blocks import read_blocks
from megatron_ko.data.text.formats import Encoding, TextUnit
from megatron_ko.data.text.records import POSITION, TYPES, Block, Rejected
from megatron_ko.data.text.wet import wet_records

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Document", "ParsedBlock", "Rejected", "parse_block", "read_documents"]

_EXCERPT = 200
# Where a value may stand; inside a string a backslash or a letter is before the quotation mark that follows.
_NOT_FINITE = re.compile(rb"([:,\[]\s*)(?:NaN|-?Infinity)(?=\s*[,\]}])")
# Stands for a value that cannot be decoded; no reader gives this object.
INVALID = object()
_NOT_UTF8 = "invalid UTF-8"
_NO_FIELDS: Mapping[str, object] = {}


@dataclass(frozen=True)
class TypedRow:
    """A row of a table, for writers that keep its types.

    Attributes:
        table: with strings as bytes.
        types: of the columns in the file.
        row: number in the table.
        fields: the values as the reader gave them; a field that is another object has been changed since.
    """

    table: "pyarrow.Table"
    types: "pyarrow.Schema"
    row: int
    fields: Mapping[str, object]


@dataclass(frozen=True)
class Document:
    """Text with its origin: source path and record number (lines from 1, rows of a table from 0).

    Attributes:
        fields: the other fields of the record; empty unless they were asked for.
        typed: the record itself, if it was a row of a table and the fields were asked for.
    """

    text: str
    source: str
    position: int
    fields: Mapping[str, object] = field(default_factory=dict)
    typed: TypedRow | None = None


@dataclass
class ParsedBlock:
    """The documents of a block, as lists because there are many: texts, their record numbers, and rejected records.

    Attributes:
        fields: the other fields of each document, None unless they were asked for.
        typed: the rows that they came from, if the block is a table that knows its types.
    """

    texts: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    fields: list[dict[str, object]] | None = None
    typed: list[TypedRow] | None = None

    def documents(self, source: str) -> Iterator[Document]:
        """The documents of a block of ``source``, in order."""
        others: Sequence[Mapping[str, object]] = self.fields or [_NO_FIELDS] * len(self.texts)
        rows: Sequence[TypedRow | None] = self.typed or [None] * len(self.texts)
        for text, position, fields, typed in zip(self.texts, self.positions, others, rows, strict=True):
            yield Document(text, source, position, fields, typed)


def read_documents(
    path: Path,
    *,
    key: str = "text",
    text_unit: TextUnit = TextUnit.line,
    keep_fields: bool = False,
    encoding: Encoding = Encoding.utf_8,
) -> Iterator[Document | Rejected]:
    """Stream the documents of a file in order, and the rejected records; blank lines are not records.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    for block in read_blocks(path, key=key, text_unit=text_unit, keep_fields=keep_fields, encoding=encoding):
        parsed = parse_block(block, key, keep_fields)
        yield from parsed.documents(block.source)
        yield from parsed.rejected


def parse_block(block: Block, key: str = "text", keep_fields: bool = False) -> ParsedBlock:
    """Every record of a block, either as a text or as rejected; blank lines of a text file are neither."""
    parsed = _parsed(block, key, keep_fields)
    if block.encoding is not Encoding.utf_8:
        reason = _NOT_UTF8.replace("UTF-8", block.encoding.value.upper())
        parsed.rejected = [replace(one, reason=reason) if one.reason == _NOT_UTF8 else one for one in parsed.rejected]
    return parsed


def _parsed(block: Block, key: str, keep_fields: bool) -> ParsedBlock:
    parsed = ParsedBlock(rejected=list(block.rejected), fields=[] if keep_fields else None)
    if block.format == "table":
        _parse_table(block, key, parsed)
    elif block.format == "wet":
        _parse_wet(block, parsed)
    elif block.format == "jsonl":
        records = block.payload.removesuffix(b"\n").split(b"\n")
        return _all_texts(block, records, key, parsed) or _parse_json(block, records, key, parsed)
    else:
        _parse_text(block, [block.payload] if block.format == "file" else block.payload.split(b"\n"), parsed)
    return parsed


def _all_texts(block: Block, records: Sequence[bytes], key: str, parsed: ParsedBlock) -> ParsedBlock | None:
    """The fast path, for a block in which every record is fine; None for any other block."""
    if parsed.fields is not None:
        return None
    try:
        texts = [value[key] for value in map(orjson.loads, records)]
        if not all(map(str.strip, texts)):
            return None
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return None
    return ParsedBlock(texts, list(range(block.first, block.first + len(texts))), parsed.rejected)


def _parse_json(block: Block, records: Sequence[bytes], key: str, parsed: ParsedBlock) -> ParsedBlock:
    """Parse record by record; ``_json_problem`` finds out what is wrong with a bad one."""
    loads = json_value
    fields = parsed.fields
    for position, record in enumerate(records, block.first):
        try:
            value = loads(record)
            text = value[key]
            usable = text.strip()
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError):
            usable = ""
        if usable:
            parsed.texts.append(text)
            parsed.positions.append(position)
            if fields is not None:
                del value[key]
                fields.append(value)
        elif record.strip():
            parsed.rejected.append(Rejected(block.source, position, _json_problem(record, key), excerpt(record)))
    return parsed


def json_value(record: bytes) -> Any:
    """The value of a line, also with NaN and Infinity, which Python and Megatron-LM write and read.

    Raises:
        orjson.JSONDecodeError: no JSON.
    """
    try:
        return orjson.loads(record)
    except orjson.JSONDecodeError:
        if b"NaN" not in record and b"Infinity" not in record:
            raise
        # Whatever else is wrong with it is still wrong when these have become numbers.
        orjson.loads(_NOT_FINITE.sub(rb"\1 0", record))
        return json.loads(record)


def _json_problem(record: bytes, key: str) -> str:
    try:
        value = json_value(record)
    except orjson.JSONDecodeError as error:
        return _NOT_UTF8 if decoded(record) is None else f"malformed JSON: {error.msg}"
    if not isinstance(value, dict):
        return "malformed JSON: not an object"
    if value.get(key) is None:
        return f"no {key!r}"
    return "empty text" if isinstance(value[key], str) else f"{key!r} is no text"


def _parse_text(block: Block, records: Sequence[bytes], parsed: ParsedBlock) -> None:
    for position, record in enumerate(records, block.first):
        text = decoded(record)
        if text is None:
            parsed.rejected.append(Rejected(block.source, position, _NOT_UTF8, excerpt(record)))
            continue
        if block.format == "txt":
            text = text.removesuffix("\r")
        if text.strip():
            parsed.texts.append(text)
            parsed.positions.append(position)
            if parsed.fields is not None:
                parsed.fields.append({})


def _parse_wet(block: Block, parsed: ParsedBlock) -> None:
    for position, (fields, content) in enumerate(wet_records(block.payload), block.first):
        text = decoded(content) if content is not None else None
        if text is not None and text.strip():
            parsed.texts.append(text)
            parsed.positions.append(position)
            if parsed.fields is not None:
                parsed.fields.append(fields)
        elif content is not None:
            reason = _NOT_UTF8 if text is None else "empty text"
            parsed.rejected.append(Rejected(block.source, position, reason, excerpt(content)))


def _parse_table(block: Block, key: str, parsed: ParsedBlock) -> None:
    import pyarrow

    table = pyarrow.ipc.open_stream(block.payload).read_all()
    types = pyarrow.ipc.read_schema(pyarrow.py_buffer(table.schema.metadata[TYPES])) if table.schema.metadata else None
    if types is not None and parsed.fields is not None:
        parsed.typed = []
    columns = {name: column_values(table.column(name)) for name in table.column_names}
    positions = columns.pop(POSITION, None) or range(block.first, block.first + table.num_rows)
    records = columns.pop(key)
    others = columns if parsed.fields is not None else {}
    for row, (position, record) in enumerate(zip(positions, records, strict=True)):
        assert isinstance(position, int)
        text = decoded(record) if isinstance(record, bytes) else None
        fields = {name: as_text(column[row]) for name, column in others.items()}
        if text is None or not text.strip() or INVALID in fields.values():
            reason = _NOT_UTF8 if INVALID in fields.values() else _row_problem(record, text, key)
            parsed.rejected.append(Rejected(block.source, position, reason, excerpt(record)))
            continue
        parsed.texts.append(text)
        parsed.positions.append(position)
        if parsed.fields is not None:
            parsed.fields.append(fields)
        if parsed.typed is not None:
            parsed.typed.append(TypedRow(table, types, row, fields))


def column_values(column: "pyarrow.ChunkedArray") -> list[object]:
    """Python values. Strings inside lists and structs were not read as bytes, and may fail to decode."""
    if _in_nanoseconds(column.type):
        return [_value(scalar) for scalar in column]
    try:
        values: list[object] = column.to_pylist()
    except (ValueError, OverflowError):
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: "pyarrow.Scalar") -> object:
    import pyarrow

    if scalar.is_valid and _in_nanoseconds(scalar.type):
        if isinstance(scalar, pyarrow.StructScalar | pyarrow.ListScalar):
            return _exact(scalar)
        # Where pandas is installed, as_py would give its types.
        if scalar.value % 1000:
            return _exact(scalar)
        scalar = scalar.cast(_in_microseconds(scalar.type))
    try:
        value: object = scalar.as_py()
    except UnicodeDecodeError:
        value = INVALID
    except (ValueError, OverflowError):
        value = _exact(scalar)
    return value


def _in_nanoseconds(type: "pyarrow.DataType") -> bool:
    """Whether a type is, or holds, a time that Python's types are too coarse for."""
    inner = [type.field(index).type for index in range(type.num_fields)]
    return getattr(type, "unit", None) == "ns" or any(map(_in_nanoseconds, inner))


def _in_microseconds(type: "pyarrow.DataType") -> "pyarrow.DataType":
    import pyarrow

    if pyarrow.types.is_timestamp(type):
        return pyarrow.timestamp("us", type.tz)
    return pyarrow.duration("us") if pyarrow.types.is_duration(type) else pyarrow.time64("us")


def _exact(scalar: "pyarrow.Scalar") -> object:
    """A time that Python has no type for, such as one in nanoseconds, as text; also inside lists and structs."""
    import pyarrow

    if isinstance(scalar, pyarrow.StructScalar):
        return {name: _value(value) for name, value in scalar.items()}
    if isinstance(scalar, pyarrow.ListScalar):
        return [_value(value) for value in scalar.values]
    text = str(scalar.cast(pyarrow.string()))
    return scalar.value if text.startswith("<") else text.replace(" ", "T")  # "<value out of range: ...>"


def as_text(value: object) -> object:
    """Bytes of a string column as text, ``INVALID`` if they are none; anything else as it is."""
    if not isinstance(value, bytes):
        return value
    text = decoded(value)
    return INVALID if text is None else text


def _row_problem(record: object, text: str | None, key: str) -> str:
    if record is None:
        return f"no {key!r}"
    if not isinstance(record, bytes):
        return f"{key!r} is no text"
    return _NOT_UTF8 if text is None else "empty text"


def decoded(record: bytes) -> str | None:
    """UTF-8 bytes as text; None if they are none."""
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError:
        return None


def excerpt(record: object) -> str:
    """The beginning of a record, for people."""
    shown = record if isinstance(record, bytes) else str(record).encode("utf-8", errors="backslashreplace")
    return shown[:_EXCERPT].decode("utf-8", errors="backslashreplace")
