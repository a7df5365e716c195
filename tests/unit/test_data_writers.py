"""Written documents come back as they were, from whole files only; parts can be joined."""

import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_a_field_that_parquet_has_no_column_for(tmp_path: Path) -> None:
    documents = [*DOCUMENTS, Document("새", "a", 0, {"late": 1})]
    with pytest.raises(DataError, match="fields change") as caught:
        write(tmp_path / "a.parquet", documents)
    assert "late" in str(caught.value) and not list(tmp_path.iterdir())
    assert len(read(write(tmp_path / "a.jsonl.zst", documents))) == 9001


def test_dates_and_missing_fields(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 1, 31, 12, 0)
    documents = [Document("가", "a", 0, {"day": day}), Document("나", "a", 1)]
    assert read(write(tmp_path / "a.parquet", documents))[1].fields == {"day": None}
    assert read(write(tmp_path / "a.jsonl", documents))[0].fields == {"day": "2024-01-31T12:00:00"}
