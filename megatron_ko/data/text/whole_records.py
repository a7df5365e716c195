"""Blocks to whole records: JSON objects, or rows of a table, with all of their fields."""

from dataclasses import dataclass

import orjson

from megatron_ko.data.text.documents import INVALID, as_text, column_values, decoded, excerpt, json_value
from megatron_ko.data.text.records import POSITION, Block, Rejected
from megatron_ko.errors import DataError
from megatron_ko.storage.open_json import JsonObject


@dataclass(frozen=True)
class ParsedRecords:
    """Whole records of a block, for those who look for more than one text in them.

    Attributes:
        records: JSON objects, or rows of a table, by field.
        positions: their numbers.
        rejected: what is no record.
    """

    records: list[JsonObject]
    positions: list[int]
    rejected: list[Rejected]


def parse_records(block: Block) -> ParsedRecords:
    """Every record of a block with all of its fields, or rejected; the block was read with ``whole_records``.

    Raises:
        DataError: the block is of plain text, which has no fields.
    """
    parsed = ParsedRecords([], [], list(block.rejected))
    if block.format == "table":
        _table_records(block, parsed)
    elif block.format == "jsonl":
        for position, record in enumerate(block.payload.removesuffix(b"\n").split(b"\n"), block.first):
            _json_record(block, position, record, parsed)
    else:
        raise DataError(
            f"{block.source} has no fields",
            got=f"format {block.format}",
            expected="jsonl, csv, tsv, parquet or arrow",
            remedy="give --format if its name says something else",
        )
    return parsed


def _json_record(block: Block, position: int, record: bytes, parsed: ParsedRecords) -> None:
    if not record.strip():
        return
    try:
        value = json_value(record)
    except orjson.JSONDecodeError as error:
        reason = "invalid UTF-8" if decoded(record) is None else f"malformed JSON: {error.msg}"
    else:
        if isinstance(value, dict):
            parsed.records.append(value)
            parsed.positions.append(position)
            return
        reason = "malformed JSON: not an object"
    parsed.rejected.append(Rejected(block.source, position, reason, excerpt(record)))


def _table_records(block: Block, parsed: ParsedRecords) -> None:
    import pyarrow

    table = pyarrow.ipc.open_stream(block.payload).read_all()
    columns = {name: column_values(table.column(name)) for name in table.column_names}
    positions = columns.pop(POSITION, None) or range(block.first, block.first + table.num_rows)
    for row, position in enumerate(positions):
        assert isinstance(position, int)
        record = {name: _without_nulls(as_text(column[row])) for name, column in columns.items()}
        if INVALID in record.values():
            parsed.rejected.append(Rejected(block.source, position, "invalid UTF-8", excerpt(record)))
            continue
        parsed.records.append(record)
        parsed.positions.append(position)


def _without_nulls(value: object) -> object:
    """A value without the empty fields of its objects: in a table each object has the fields of all of them."""
    if isinstance(value, dict):
        return {name: _without_nulls(held) for name, held in value.items() if held is not None}
    if isinstance(value, list):
        return [_without_nulls(held) for held in value]
    return value
