"""Whatever the bytes of a file: every record is accounted for, or a DataError says that the file is damaged."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ko.data.text.documents import Document, read_documents
from megatron_ko.errors import DataError

TEXTS = [f'글 {n} "인용",\n둘째 줄 ' + "가" * (n % 50) for n in range(300)]
TABLE = pyarrow.table({"text": TEXTS, "n": range(300), "tags": [["꼬리"] * (n % 3) for n in range(300)]})


def jsonl() -> bytes:
    return "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(TEXTS)).encode()


def comma_separated() -> bytes:
    sink = io.StringIO()
    csv.writer(sink).writerows([["text", "n"], *([text, n] for n, text in enumerate(TEXTS))])
    return sink.getvalue().encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(TABLE, sink, row_group_size=100)
    return sink.getvalue()


def arrow(new: Callable[..., pyarrow.ipc.RecordBatchStreamWriter]) -> bytes:
    sink = io.BytesIO()
    with new(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=70)
    return sink.getvalue()


def wet() -> bytes:
    pages = [text.encode() for text in TEXTS]
    head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {}\r\n\r\n"
    return b"".join(head.format(len(page)).encode() + page + b"\r\n\r\n" for page in pages)


WHOLE = {
    "jsonl": jsonl(),
    "csv": comma_separated(),
    "parquet": parquet(),
    "arrow": arrow(pyarrow.ipc.new_file),
    "stream.arrow": arrow(pyarrow.ipc.new_stream),
    "wet": wet(),
    "jsonl.gz": gzip.compress(jsonl()),
    "jsonl.zst": zstandard.compress(jsonl()),
}
# Where (as a share of the file), how many bytes go, and what comes in their place.
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=5
)


@pytest.mark.parametrize("kind", WHOLE)
def test_the_undamaged_file_is_read_whole(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(WHOLE[kind])
    assert [record.text for record in read_documents(tmp_path / f"a.{kind}")] == TEXTS


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, cut=st.booleans(), keep=st.booleans())
def test_damage_is_a_data_error_or_bad_records(
    tmp_path: Path, kind: str, changes: list[tuple[float, int, bytes]], cut: bool, keep: bool
) -> None:
    content = bytearray(WHOLE[kind])
    for place, removed, added in changes:
        start = int(place * len(content))
        content[start : start + removed] = added
    if cut:
        del content[int(changes[0][0] * len(content)) :]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    try:
        records = list(read_documents(path, keep_fields=keep))
    except DataError:
        return
    if kind == "jsonl":
        lines = [line for line in bytes(content).removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        assert len(records) == len(lines)
    assert all(isinstance(record, Document) == hasattr(record, "text") for record in records)


FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(FIELD, FIELD), max_size=20))
def test_any_csv_comes_back(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    sink = io.StringIO()
    csv.writer(sink, quoting=csv.QUOTE_ALL).writerows([("other", "text"), *rows])
    (tmp_path / "a.csv").write_bytes(sink.getvalue().encode())
    records = list(read_documents(tmp_path / "a.csv", keep_fields=True))
    documents = [record for record in records if isinstance(record, Document)]
    assert [(d.fields["other"], d.text) for d in documents] == [row for row in rows if row[1].strip()]
    assert len(records) == len(rows)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.binary(max_size=30), max_size=20))
def test_no_tsv_line_is_lost(tmp_path: Path, lines: list[bytes]) -> None:
    content = b"text\tother\n" + b"\n".join(lines)
    (tmp_path / "a.tsv").write_bytes(content)
    rows = content.split(b"\n")[1:]
    expected = sum(bool(row.removesuffix(b"\r").decode("utf-8", "surrogateescape").strip()) for row in rows)
    assert len(list(read_documents(tmp_path / "a.tsv"))) == expected
