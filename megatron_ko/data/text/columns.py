"""Documents to Arrow tables without altering a value: typed rows keep their types, other values get the narrowest one
that holds all of them exactly. What no type can hold is refused, and the row named."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_ko.data.text.documents import Document, TypedRow
from megatron_ko.errors import DataError

if TYPE_CHECKING:
    import pyarrow

REMEDY = "add --output-format jsonl.zst --restart, which keeps any mixture of fields"


@dataclass(frozen=True)
class Piece:
    """Rows of a future file.

    Attributes:
        table: their columns.
        place: which record a row came from, in words.
    """

    table: "pyarrow.Table"
    place: Callable[[int], str]


def piece_of(documents: Sequence[Document], key: str) -> Piece:
    """The rows of documents that have their types from the same table, or none.

    Raises:
        DataError: values of one field that no type holds together.
    """
    import pyarrow

    def place(row: int) -> str:
        return f"{documents[row].source}, record {documents[row].position}"

    typed = [document.typed for document in documents if document.typed is not None]
    columns = _typed_columns(typed) if typed else {}
    text_type = columns[key].type if key in columns and _is_string(columns[key].type) else pyarrow.string()
    columns[key] = pyarrow.chunked_array([pyarrow.array([d.text for d in documents], pyarrow.string())]).cast(text_type)
    for name in dict.fromkeys(name for document in documents for name in document.fields):
        if name not in columns or any(_is_new(document, name) for document in documents):
            columns[name] = _column(name, [document.fields.get(name) for document in documents], place)
    return Piece(pyarrow.table(columns), place)


def same_table(document: Document, other: Document) -> bool:
    """Whether the types of both come from the same table, so that they can be one piece."""
    tables = [one.typed.table if one.typed is not None else None for one in (document, other)]
    return tables[0] is tables[1]


def schema_of(pieces: Sequence[Piece]) -> "pyarrow.Schema":
    """Columns that hold the values of all pieces.

    Raises:
        DataError: types that have nothing in common, with the row that is the first to differ.
    """
    import pyarrow

    schema = pieces[0].table.schema.remove_metadata()
    for piece in pieces[1:]:
        other = piece.table.schema.remove_metadata()
        if other.equals(schema):
            continue
        for field in other:
            old = schema.field(field.name) if field.name in schema.names else field
            try:
                pyarrow.unify_schemas([pyarrow.schema([old]), pyarrow.schema([field])], promote_options="permissive")
            except pyarrow.ArrowException as error:
                values = piece.table.column(field.name)
                row = next(i for i in range(len(values)) if values[i].is_valid)
                raise _refusal(field.name, f"{old.type} before, {field.type} in {piece.place(row)}") from error
        schema = _unified(schema, other)
    return schema


def _unified(schema: "pyarrow.Schema", other: "pyarrow.Schema") -> "pyarrow.Schema":
    import pyarrow

    united = pyarrow.unify_schemas([schema, other], promote_options="permissive")
    for index, field in enumerate(united):
        types = [one.field(field.name).type for one in (schema, other) if field.name in one.names]
        # Arrow would take int64, in which the numbers that need uint64 have no place.
        if pyarrow.uint64() in types and field.type == pyarrow.int64():
            united = united.set(index, field.with_type(pyarrow.uint64()))
    return united


def widened(piece: Piece, schema: "pyarrow.Schema") -> "pyarrow.Table":
    """The rows with the columns of a schema; what they lack is null.

    Raises:
        DataError: a value that the wider type does not hold exactly.
    """
    import pyarrow

    if piece.table.schema.equals(schema):
        return piece.table
    columns = []
    for field in schema:
        if field.name not in piece.table.column_names:
            columns.append(pyarrow.nulls(piece.table.num_rows, field.type))
            continue
        column = piece.table.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except pyarrow.ArrowException as error:
            row = next(i for i in range(len(column)) if not _fits(column[i : i + 1], field.type))
            raise _refusal(field.name, f"{column[row]} in {piece.place(row)}, {field.type} elsewhere") from error
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _typed_columns(rows: Sequence[TypedRow]) -> dict[str, "pyarrow.ChunkedArray"]:
    """The columns of rows of one table, with the types that they had in the file."""
    import pyarrow
    import pyarrow.types as types

    taken = rows[0].table.take(pyarrow.array([row.row for row in rows]))
    columns = {}
    for field in rows[0].types:
        column = taken.column(field.name)
        if types.is_binary(column.type):  # strings are read as bytes
            column = column.cast(pyarrow.string())
        elif types.is_large_binary(column.type):
            column = column.cast(pyarrow.large_string())
        columns[field.name] = column.cast(field.type)
    return columns


def _is_new(document: Document, name: str) -> bool:
    """Whether a field is not the one that its record had."""
    had = document.typed.fields if document.typed is not None else {}
    return name in document.fields and (name not in had or document.fields[name] is not had[name])


def _column(name: str, values: Sequence[object], place: Callable[[int], str]) -> "pyarrow.Array":
    import pyarrow

    try:
        array = pyarrow.array(values)
        # true becomes 1.0 beside 0.5.
        row = next(
            (i for i, (old, new) in enumerate(zip(values, array.to_pylist(), strict=True)) if _differ(old, new)), None
        )
        if row is not None:
            raise _refusal(name, f"{values[row]} among numbers, in {place(row)}")
        return array
    except OverflowError as error:
        if all(value is None or (isinstance(value, int) and 0 <= value < 1 << 64) for value in values):
            return pyarrow.array(values, pyarrow.uint64())
        raise _refusal(name, f"{error}, in {place(_first_misfit(values))}") from error
    except pyarrow.ArrowException as error:
        raise _refusal(name, f"{error}, in {place(_first_misfit(values))}") from error


def _differ(old: object, new: object) -> bool:
    """Whether a truth value has become a number, or the other way round; missing keys are null."""
    if isinstance(old, dict) and isinstance(new, dict):
        return any(_differ(old.get(name), value) for name, value in new.items())
    if isinstance(old, list) and isinstance(new, list):
        return any(map(_differ, old, new))
    return isinstance(old, bool) is not isinstance(new, bool)


def _first_misfit(values: Sequence[object]) -> int:
    """The first value that has no type in common with those before it."""
    import pyarrow

    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pyarrow.array(values[:middle])
            low = middle
        except (pyarrow.ArrowException, OverflowError):
            high = middle
    return high - 1


def _fits(value: "pyarrow.ChunkedArray", type: "pyarrow.DataType") -> bool:
    import pyarrow

    try:
        value.cast(type)
    except pyarrow.ArrowException:
        return False
    return True


def _is_string(type: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    return types.is_string(type) or types.is_large_string(type) or types.is_string_view(type)


def _refusal(name: str, got: str) -> DataError:
    return DataError(
        f"field {name!r} cannot be one column of a parquet file",
        got=got,
        expected="values of one type, or numbers that the wider type holds exactly",
        remedy=REMEDY,
    )
