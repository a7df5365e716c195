"""Written documents come back as they were, from whole files only; parts can be joined."""

import datetime
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from megatron_ko.data.text.documents import Document, Rejected, read_documents
from megatron_ko.data.text.writers import SUFFIXES, DocumentWriter, merge_documents
from megatron_ko.errors import DataError


def write(path: Path, documents: list[Document], key: str = "text") -> Path:
    with DocumentWriter(path, key) as writer:
        for document in documents:
            writer.write(document)
    return path


def read(path: Path, key: str = "text") -> list[Document]:
    records = list(read_documents(path, key=key, keep_fields=True))
    assert not [record for record in records if isinstance(record, Rejected)]
    return [record for record in records if isinstance(record, Document)]


DOCUMENTS = [
    Document(f"가 {n}\n\t\u2028ㅋㅋ \0끝", "a", n, {"id": n, "tags": ["하나", "둘"], "name": f"이름 {n}", "none": None})
    for n in range(9000)
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_and_fields_come_back(tmp_path: Path, suffix: str) -> None:
    found = read(write(tmp_path / f"a{suffix}", DOCUMENTS, "body"), "body")
    assert [(document.text, document.fields) for document in found] == [(d.text, d.fields) for d in DOCUMENTS]
    again = write(tmp_path / f"b{suffix}", DOCUMENTS, "body")
    assert again.read_bytes() == (tmp_path / f"a{suffix}").read_bytes()
    assert read(write(tmp_path / f"empty{suffix}", [])) == []
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parts_join_in_order(tmp_path: Path, suffix: str) -> None:
    parts = [
        write(tmp_path / f"{n}{suffix}", documents)
        for n, documents in enumerate([[], DOCUMENTS[:5], [Document("뒤", "b", 0)], DOCUMENTS[5:9]])
    ]
    merge_documents(parts, tmp_path / f"all{suffix}")
    found = read(tmp_path / f"all{suffix}")
    assert [document.text for document in found] == [
        *(d.text for d in DOCUMENTS[:5]), "뒤", *(d.text for d in DOCUMENTS[5:9])
    ]  # fmt: skip
    assert found[4].fields == DOCUMENTS[4].fields
    with pytest.raises(DataError, match="exists already"):
        merge_documents(parts, tmp_path / f"all{suffix}")


@settings(max_examples=20)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), max_size=9))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    for suffix in SUFFIXES:
        path = write(folder / f"a{suffix}", [Document(text, "x", 0) for text in texts])
        assert [document.text for document in read(path)] == texts


def test_nothing_half_written_gets_its_name(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"a{suffix}"
        with pytest.raises(KeyError), DocumentWriter(path) as writer:
            writer.write(DOCUMENTS[0])
            raise KeyError
        assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"suffix \.csv"):
        DocumentWriter(tmp_path / "a.csv")


def numbered(*values: object, first: int = 0) -> list[Document]:
    return [Document(f"글 {n}", "a", n, {"v": value}) for n, value in enumerate(values, first)]


@pytest.mark.parametrize(
    ("later", "expected"),
    [(0.97, 0.97), (2**63, 2**63), (None, None), (2**40, 2**40)],
)
def test_parquet_keeps_values_that_come_late(tmp_path: Path, later: object, expected: object) -> None:
    """The first 4,096 rows once decided the types, and 0.97 became 0."""
    documents = [*numbered(*[1] * 4096), *numbered(later, first=4096)]
    if later == 2**63:
        with pytest.raises(DataError, match="'v' cannot be one column") as caught:
            write(tmp_path / "a.parquet", [*documents, *numbered(-1)])
        assert "--output-format jsonl.zst --restart" in str(caught.value)
    fields = [document.fields["v"] for document in read(write(tmp_path / "b.parquet", documents))]
    assert fields == [*[1] * 4096, expected]


def test_parquet_keeps_keys_that_come_late(tmp_path: Path) -> None:
    documents = [*numbered(*[{"a": 1}] * 4096), *numbered({"a": 2, "b": ["새"]}), Document("끝", "a", 9, {"late": 1})]
    found = [document.fields for document in read(write(tmp_path / "a.parquet", documents))]
    assert found[4096:] == [{"v": {"a": 2, "b": ["새"]}, "late": None}, {"v": None, "late": 1}]


@pytest.mark.parametrize(
    "values", [(1, "하나"), (0.5, 2**53 + 1), (1, True), (0.5, True), ({"a": 0.5}, {"a": True}), (-1, 2**64 - 1)]
)
@pytest.mark.parametrize("between", [0, 4096])
def test_parquet_refuses_what_it_would_alter(tmp_path: Path, values: tuple[object, object], between: int) -> None:
    documents = [*numbered(values[0], *[None] * between), *numbered(values[1], first=77)]
    with pytest.raises(DataError, match="'v' cannot be one column") as caught:
        write(tmp_path / "a.parquet", documents)
    place = "a, record 0" if between and values[0] == -1 else "a, record 77"  # the row that its column cannot hold
    assert place in str(caught.value) and not list(tmp_path.iterdir())
    assert len(read(write(tmp_path / "a.jsonl.zst", documents))) == between + 2


def test_joined_parts_are_widened_or_refused(tmp_path: Path) -> None:
    whole, half, word, large = (
        write(tmp_path / f"{name}.parquet", numbered(value))
        for name, value in (("whole", 1), ("half", 0.5), ("word", "하나"), ("large", 2**53 + 1))
    )
    merge_documents([whole, half], tmp_path / "both.parquet")
    assert [document.fields["v"] for document in read(tmp_path / "both.parquet")] == [1.0, 0.5]
    for other in (word, large):
        with pytest.raises(DataError, match=f"document {2 if other is word else 1:,} of the output"):
            merge_documents([half, other] if other is word else [other, half], tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()


def test_the_types_of_a_table_are_carried_over(tmp_path: Path) -> None:
    """Also those that Python has no type for, and of columns that are empty for a long time."""
    rows = 5000
    last = [None] * (rows - 1)
    struct = pyarrow.struct([("at", pyarrow.timestamp("ns")), ("n", pyarrow.uint64())])
    table = pyarrow.table(
        {
            "text": pyarrow.array([f"글 {n}" for n in range(rows)], pyarrow.large_string()),
            "license": pyarrow.array([*last, "CC0"], pyarrow.string()),
            "large": pyarrow.array([*last, 2**64 - 1], pyarrow.uint64()),
            "small": pyarrow.array([*last, 7], pyarrow.int8()),
            "half": pyarrow.array([*last, 0.1], pyarrow.float32()),
            "at": pyarrow.array([*last, 1_700_000_000_123_456_789], pyarrow.timestamp("ns", "Asia/Seoul")),
            "day": pyarrow.array([*last, datetime.date(1999, 1, 2)], pyarrow.date32()),
            "time": pyarrow.array([*last, 1_234_567_891], pyarrow.time64("ns")),
            "price": pyarrow.array([*last, Decimal("12.3400")], pyarrow.decimal128(12, 4)),
            "kind": pyarrow.array([*last, "책"]).dictionary_encode(),
            "nested": pyarrow.array([*last, [{"at": 1, "n": 2**64 - 1}]], pyarrow.list_(struct)),
            "map": pyarrow.array([*last, [("열쇠", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int16())),
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    expected = parquet.read_table(tmp_path / "in.parquet")
    found = parquet.read_table(write(tmp_path / "out.parquet", read(tmp_path / "in.parquet")))
    assert found.schema.equals(expected.schema)
    assert found.combine_chunks().equals(expected.combine_chunks())
    documents = [replace(d, fields={**d.fields, "level": "반말"}, text="새 글") for d in read(tmp_path / "in.parquet")]
    noted = parquet.read_table(write(tmp_path / "noted.parquet", documents))
    kept = [
        one.drop_columns(names).combine_chunks() for one, names in ((noted, ["text", "level"]), (expected, ["text"]))
    ]
    assert kept[0].equals(kept[1])
    assert set(noted["level"].to_pylist()) == {"반말"} and set(noted["text"].to_pylist()) == {"새 글"}


def test_dates_and_missing_fields(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 1, 31, 12, 0)
    documents = [Document("가", "a", 0, {"day": day}), Document("나", "a", 1)]
    assert read(write(tmp_path / "a.parquet", documents))[1].fields == {"day": None}
    assert read(write(tmp_path / "a.jsonl", documents))[0].fields == {"day": "2024-01-31T12:00:00"}
