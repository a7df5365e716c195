"""Corpora as people have them: folders that are written into while they are read, empty archives, odd columns."""

import gzip
import json
import os
import signal
import warnings
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from matplotlib import font_manager
from matplotlib.figure import Figure

from megatron_ko.data.dedup.dedup import dedup
from megatron_ko.data.dedup.options import DedupOptions, InputFiles
from megatron_ko.data.figures import KOREAN, check_picture, save_png
from megatron_ko.data.jobs.workers import map_unordered
from megatron_ko.data.text.documents import Document, read_documents
from megatron_ko.data.text.inputs import check_inputs, expand_inputs
from megatron_ko.data.text.writers import DocumentWriter
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.errors import DataError


def written(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def names(*given: Path) -> list[str]:
    return [path.name for path in expand_inputs(given)]


def test_an_output_below_its_input_is_no_input_when_the_command_goes_on(tmp_path: Path) -> None:
    """Parts of jobs, and what lies beside indexed tokens, are no documents; folders that only look so are."""
    written(tmp_path / "a.jsonl", "하나")
    for folder, described in (("clean.parts", "job.json"), ("unique.parts", "sign/job.json")):
        (tmp_path / folder / described).parent.mkdir(parents=True)
        (tmp_path / folder / described).write_text("{}")
        written(tmp_path / folder / "part-00000000.jsonl", "하나")
    written(tmp_path / "spare.parts/b.jsonl", "둘")
    for end in (".idx", ".bin", ".manifest.json", ".rejected.jsonl"):
        (tmp_path / f"corpus{end}").write_text("{}")
    written(tmp_path / "own.manifest.json", "셋")
    assert names(tmp_path) == ["a.jsonl", "own.manifest.json", "b.jsonl"]
    assert names(tmp_path / "**/*.jsonl") == ["a.jsonl", "corpus.rejected.jsonl", "b.jsonl"]


def test_links_in_a_circle_give_every_file_once(tmp_path: Path) -> None:
    written(tmp_path / "a/a.jsonl", "하나")
    (tmp_path / "a/self").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "elsewhere")
    written(tmp_path / "elsewhere/b.jsonl", "둘")
    assert names(tmp_path / "a") == ["a.jsonl", "b.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match="given twice"):
        check_inputs(expand_inputs([tmp_path / "a"]))


def test_what_is_missing_or_a_pipe_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        check_inputs([tmp_path / "gone"])
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xb0\xa1.jsonl"))
    written(odd, "하나")
    with pytest.raises(DataError, match="no UTF-8") as caught:
        check_inputs(expand_inputs([tmp_path]))
    assert r"\udcb0\udca1" in str(caught.value) and "CP949" in str(caught.value.remedy)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="is no file") as caught:
        check_inputs([tmp_path / "pipe.jsonl"])
    assert "--input -" in str(caught.value.remedy)


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz", ".parquet"])
def test_two_sources_of_which_nothing_stayed_are_not_one_given_twice(tmp_path: Path, suffix: str) -> None:
    first, second, third = (written(tmp_path / f"{name}.jsonl", "같은 글") for name in "abc")
    with pytest.raises(DataError, match="given twice"):
        check_inputs([first, second])
    second.write_text(second.read_text() * 2)
    third.write_text(third.read_text() * 3)
    dedup(DedupOptions(InputFiles((first, second, third)), tmp_path / "unique", suffix=suffix))
    left = expand_inputs([tmp_path / "unique"])
    check_inputs(left)
    assert [len(list(read_documents(path))) for path in left] == [1, 0, 0]


def test_a_source_may_be_called_as_a_file_beside_the_documents(tmp_path: Path) -> None:
    inputs = tuple(written(tmp_path / name, name, "같은 글") for name in ("removed.jsonl", "rejected.jsonl", "a.jsonl"))
    (tmp_path / "a.jsonl").write_text('{"text": "셋"}\nbroken\n')
    for suffix in (".jsonl", ".jsonl.zst"):
        output = tmp_path / f"unique{suffix}"
        manifest = dedup(DedupOptions(InputFiles(inputs), output, suffix=suffix)).manifest
        held = [len(list(read_documents(output / entry["file"]))) for entry in manifest["outputs"]]
        assert held == [2, 1, 1] == [entry["documents"] for entry in manifest["outputs"]]
        assert len((output / "rejected.jsonl").read_bytes().splitlines()) == 1


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_an_archive_of_no_bytes_was_cut(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="is damaged"):
        list(read_documents(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.tsv"])
def test_compressed_bytes_under_a_plain_name_are_refused_as_a_whole(tmp_path: Path, name: str) -> None:
    for content, suffix in ((gzip.compress(b"text\na\n"), ".gz"), (zstandard.compress(b"text\na\n"), ".zst")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="is compressed") as caught:
            list(read_documents(tmp_path / name))
        assert str(caught.value.remedy).endswith(f"{name}{suffix}")


def test_large_windows_are_read(tmp_path: Path) -> None:
    """As `zstd --long=31` packs large dumps."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compressor.compress(b'{"text": "a"}\n') + compressor.flush())
    assert [record.text for record in read_documents(path) if isinstance(record, Document)] == ["a"]


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, {"text": "b"}]', '[{"text": "a"},\n{"text": "b"}]', ' [ {"a": 1}']
)
def test_an_array_in_one_line_is_refused_as_a_whole(tmp_path: Path, content: str) -> None:
    for name in ("a.json", "a.json.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
        with pytest.raises(DataError, match="is one JSON array"):
            list(read_documents(path))
    (tmp_path / "chats.jsonl").write_text('[{"role": "user"}]\n[{"role": "user"}]\n')
    assert len(list(read_documents(tmp_path / "chats.jsonl"))) == 2


def test_columns_that_python_has_no_type_for(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    moments = pyarrow.array([1_700_000_000_123_456_789, None], pyarrow.timestamp("ns"))
    table = {
        "text": ["하나", "둘"],
        "when": moments,
        "day": pyarrow.array([2**22, 0], pyarrow.date32()),
        "within": pyarrow.StructArray.from_arrays([moments], ["at"]),
        "listed": pyarrow.array([[1], None], pyarrow.list_(pyarrow.timestamp("ns"))),
        "picture": [{"bytes": b"\xff", "path": "a.png"}, None],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    found = [record.fields for record in read_documents(path, keep_fields=True) if isinstance(record, Document)]
    moment = "2023-11-14T22:13:20.123456789"
    assert found[0] == {
        "when": moment, "day": "13453-08-13", "within": {"at": moment}, "listed": ["1970-01-01T00:00:00.000000001"],
    }  # fmt: skip
    assert found[1]["when"] is None and found[1]["listed"] is None
    pyarrow.parquet.write_table(pyarrow.table([["a"], [1], [2]], names=["text", "n", "n"]), path)
    with pytest.raises(DataError, match="name each column once"):
        list(read_documents(path, keep_fields=True))


@pytest.mark.parametrize(
    ("values", "told"), [([1, "x"], "cannot be one column"), ([{}], "no type in parquet"), ([2**64], "parquet")]
)
def test_fields_that_parquet_cannot_hold_are_told(tmp_path: Path, values: list[object], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:  # noqa: SIM117
        with DocumentWriter(tmp_path / "a.parquet") as writer:
            for value in values:
                writer.write(Document("글", "a", 1, {"field": value}))
    assert "jsonl.zst" in str(caught.value.remedy) and not list(tmp_path.iterdir())


def test_a_key_that_no_file_name_can_hold_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "하나")
    for keys, prefixes in ((("a/b", "text"), ()), (("a/b",), ("a_a/b_document",))):
        options = PreprocessOptions((path,), tmp_path / "tok", tmp_path / "a", keys=keys, names=prefixes)
        with pytest.raises(DataError, match="cannot have a '/'"):
            preprocess(options)


def test_pictures_have_names_of_pictures_and_korean_letters(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "a.xyz", tmp_path / "a"):
        with pytest.raises(DataError, match=r"ends in \.png"):
            check_picture(name)
    check_picture(tmp_path / "new/a.png")
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("가나")
    axes.set_yticks([0], ["다라"])
    with warnings.catch_warnings():
        # Only where no font of the list is installed, letters are boxes, and matplotlib says so.
        warnings.simplefilter("error" if set(KOREAN) & set(font_manager.get_font_names()) else "ignore")
        save_png(figure, tmp_path / "new/a.png")
    assert (tmp_path / "new/a.png").read_bytes().startswith(b"\x89PNG")
    written(tmp_path / "file", "x")
    with pytest.raises(DataError, match="in the way"):
        save_png(Figure(), tmp_path / "file/a.png")


def interrupted(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_workers_do_not_hear_ctrl_c_while_they_start() -> None:
    assert list(map_unordered(interrupted, range(2), 2)) == [True, True]
    assert not interrupted(0)
