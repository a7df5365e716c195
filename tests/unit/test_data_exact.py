"""Nothing changes a document in silence, and what a refusal tells the user to do works as it is printed."""

import json
import math
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from megatron_ko.cli.main import app
from megatron_ko.data.text.documents import Document, Rejected, read_documents
from megatron_ko.data.text.writers import DocumentWriter
from megatron_ko.errors import DataError

PIPELINE = "words: eojeol\nstages:\n  - length: {min_characters: 1}\n"


def invoke(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, DataError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def lines_of(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "NaN"]),
        st.recursive(
            st.floats() | st.sampled_from(["NaN", ': NaN,"', "Infinity", None, True]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
            max_leaves=6,
        ),
    )
)
def test_nan_and_infinity_are_read_and_written(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]
) -> None:
    """As json.dumps writes them; only the text decides whether a record is a document."""
    folder = tmp_path_factory.mktemp("nan")
    (folder / "a.jsonl").write_text(json.dumps({"text": "NaN, 글", **fields}) + "\n", encoding="utf-8")
    [document] = read_documents(folder / "a.jsonl", keep_fields=True)
    assert isinstance(document, Document) and document.text == "NaN, 글"
    with DocumentWriter(folder / "b.jsonl") as writer:
        writer.write(document)
    [again] = lines_of(folder, "b.jsonl")
    assert json.dumps(again) == json.dumps({"text": "NaN, 글", **fields})


@pytest.mark.parametrize(
    "line", ['{"text":"글","s":NaNa}', '{"text":"글","s":NaN', '{"text":NaN}', '{"text":"글" NaN}']
)
def test_what_is_no_json_stays_rejected(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n", encoding="utf-8")
    assert [type(record) for record in read_documents(tmp_path / "a.jsonl")] == [Rejected]


def test_nan_in_parquet(tmp_path: Path) -> None:
    documents = [Document("글", "a", n, {"v": value}) for n, value in enumerate([math.nan, math.inf, 1])]
    with DocumentWriter(tmp_path / "a.parquet") as writer:
        for document in documents:
            writer.write(document)
    values = [record.fields["v"] for record in read_documents(tmp_path / "a.parquet", keep_fields=True)]  # type: ignore[union-attr]
    assert math.isnan(values[0]) and values[1:] == [math.inf, 1.0]  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", ["clean", "dedup"])
def test_the_remedy_for_mixed_types_works_as_printed(tmp_path: Path, verb: str) -> None:
    rows = [{"text": "하나", "v": 1}, {"text": "둘", "v": "이"}]
    (tmp_path / "in.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    (tmp_path / "p.yaml").write_text(PIPELINE, encoding="utf-8")
    words = ["data", verb, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--workers", 1]
    words += ["--config", tmp_path / "p.yaml"] if verb == "clean" else []
    with pytest.raises(DataError, match=r"in\.jsonl, record 2") as caught:
        invoke(*words, "--output-format", "parquet")
    assert caught.value.remedy is not None
    options = caught.value.remedy.partition("add ")[2].partition(",")[0].split()
    invoke(*words, *options)
    assert list((tmp_path / "out").glob("*.jsonl.zst"))


def test_clean_reads_files_whose_names_say_nothing(tmp_path: Path) -> None:
    """--format is the kind of the inputs in every verb; endings count in any case."""
    (tmp_path / "dump").write_text('{"text":"글 하나"}\n', encoding="utf-8")
    (tmp_path / "E.JSONL").write_text('{"text":"글 둘"}\n', encoding="utf-8")
    (tmp_path / "p.yaml").write_text(PIPELINE, encoding="utf-8")
    words = ["data", "clean", "--config", tmp_path / "p.yaml", "--output-format", "jsonl", "--workers", 1]
    invoke(*words, "--input", tmp_path / "dump", "--format", "jsonl", "--output", tmp_path / "a")
    invoke(*words, "--input", tmp_path / "E.JSONL", "--output", tmp_path / "b")
    assert lines_of(tmp_path / "a", "clean-00000.jsonl") == [{"text": "글 하나"}]
    assert lines_of(tmp_path / "b", "clean-00000.jsonl") == [{"text": "글 둘"}]


def test_decontaminate_names_its_own_flag(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("글\n", encoding="utf-8")
    (tmp_path / "dev.tsv").write_text("ID\tText\n1\t물음\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no column 'text'") as caught:
        invoke(
            "data",
            "decontaminate",
            "--input",
            tmp_path / "in.txt",
            "--output",
            tmp_path / "o",
            "--against",
            tmp_path / "dev.tsv",
        )
    assert caught.value.remedy == "--against-key COLUMN"
