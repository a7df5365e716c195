"""Which files are meant, and every kind of file read whole; damage is told with its place."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_ko.data.dedup.dedup import dedup
from megatron_ko.data.dedup.options import DedupOptions, InputFiles
from megatron_ko.data.jobs.chunks import Reading, check_unchanged, input_identity, read_chunks
from megatron_ko.data.text.documents import Document, Rejected, parse_block, read_documents
from megatron_ko.data.text.inputs import check_inputs, expand_inputs, format_of
from megatron_ko.errors import DataError

ROOT = Path(__file__).parents[2]


def split(path: Path, key: str = "text", keep_fields: bool = True) -> tuple[list[Document], list[Rejected]]:
    records = list(read_documents(path, key=key, keep_fields=keep_fields))
    documents = [record for record in records if isinstance(record, Document)]
    return documents, [record for record in records if isinstance(record, Rejected)]


def packed(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = zstandard.ZstdCompressor(write_checksum=True).compress(content)  # as the zstd program does
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_csv_records_may_hold_line_breaks_quotes_and_commas(tmp_path: Path, suffix: str) -> None:
    first = '\ufeffid,text\r\n1,"첫째, ""인용"" 줄\n둘째 줄"\r\n2,평문\r\n\r\n3,\r\n'
    content = f'{first}4,셋,넷\r\n5,"끝"뒤\r\n6,마지막'.encode() + b"\n7,\xff"
    documents, rejected = split(packed(tmp_path / f"a.csv{suffix}", content))
    assert [(d.text, d.position, d.fields) for d in documents] == [
        ('첫째, "인용" 줄\n둘째 줄', 2, {"id": "1"}),
        ("평문", 4, {"id": "2"}),
        ("마지막", 9, {"id": "6"}),
    ]
    assert [(record.position, record.reason) for record in sorted(rejected, key=lambda r: r.position)] == [
        (6, "empty text"),
        (7, "malformed csv: 3 fields instead of 2"),
        (8, "malformed csv: ',' expected after '\"'"),
        (10, "invalid UTF-8"),
    ]


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path: Path) -> None:
    rows = "".join(f"{n},줄 {n}\n" for n in range(50_000))
    path = packed(tmp_path / "a.csv", f'id,text\n{rows}x,"열림\n{rows}'.encode())
    with pytest.raises(DataError, match="never closed") as caught:
        split(path)
    assert "line 50,002" in str(caught.value)
    with pytest.raises(DataError, match="no column 'body'"):
        split(path, "body")
    assert split(packed(tmp_path / "empty.csv", b"")) == ([], [])
    with pytest.raises(DataError, match="name each column once, in UTF-8"):
        split(packed(tmp_path / "twice.csv", b"text,text\na,b\n"))


def test_quotes_mean_nothing_in_tsv(tmp_path: Path) -> None:
    content = 'text\tn\n"두근두근"은 책이다\t1\n그는 "네\t2\n\n짧은 줄\n셋\t3\r\n'.encode()
    documents, rejected = split(packed(tmp_path / "a.tsv", content))
    assert [(d.text, d.position, d.fields["n"]) for d in documents] == [
        ('"두근두근"은 책이다', 2, "1"),
        ('그는 "네', 3, "2"),
        ("셋", 6, "3"),
    ]
    assert [(record.position, record.reason) for record in rejected] == [(5, "malformed tsv: 1 fields instead of 2")]


def test_real_tsv_files_are_read_whole(shared_data: Path) -> None:
    for name, key, number in (("boolq_train", "Text", 3665), ("copa_train", "sentence", 3076)):
        documents, rejected = split(shared_data / f"kobest/{name}.tsv", key)
        lines = (shared_data / f"kobest/{name}.tsv").read_text(encoding="utf-8").splitlines()
        assert len(documents) == len(lines) - 1 == number and not rejected


def wet_record(kind: str, content: str, uri: str = "https://example.kr/") -> bytes:
    payload = content.encode()
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nContent-Length: {len(payload)}\r\n\r\n"
    return header.encode() + payload + b"\r\n\r\n"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_wet(tmp_path: Path, suffix: str) -> None:
    large = "긴 쪽\n" * 400_000
    records = [
        wet_record("warcinfo", "software: x"),
        wet_record("conversion", "첫 쪽\r\n\r\nWARC/1.0 처럼 보이는 글\n"),
        wet_record("conversion", "  "),
        wet_record("conversion", large, "https://example.kr/2"),
        wet_record("conversion", "끝"),
    ]
    # Crawls compress every record on its own.
    content = b"".join(map(gzip.compress, records)) if suffix else b"".join(records)
    (tmp_path / f"a.wet{suffix}").write_bytes(content)
    documents, rejected = split(tmp_path / f"a.wet{suffix}")
    assert [d.text for d in documents] == ["첫 쪽\r\n\r\nWARC/1.0 처럼 보이는 글\n", large, "끝"]
    assert [d.position for d in documents] == [2, 4, 5] and documents[1].fields["url"] == "https://example.kr/2"
    assert [(r.position, r.reason) for r in rejected] == [(3, "empty text")]


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        wet_record("conversion", "가" * 100)[:-150],
        wet_record("conversion", "가").replace(b"Content-Length: 3", b"Content-Length: x"),
        wet_record("conversion", "가").replace(b"Content-Length: 3", b"Content-Length: 1") * 2,
    ],
)
def test_a_damaged_wet_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="no WET file, or is damaged") as caught:
        split(packed(tmp_path / "a.wet", wet_record("conversion", "앞") + content))
    assert "record 2" in str(caught.value) or "record 3" in str(caught.value)


TABLE = pyarrow.table(
    {
        "text": pyarrow.array(["가", None, "나\n다", "", "라"] * 700),
        "large": pyarrow.array(["큰"] * 3500, type=pyarrow.large_string()),
        "coded": pyarrow.array(["하나", "둘"] * 1750).dictionary_encode(),
        "tags": pyarrow.array([["a", "b"], []] * 1750),
        "image": pyarrow.array([b"\xff\xfe"] * 3500),
        "n": range(3500),
    }
)


def arrow_file(path: Path, kind: str, table: pyarrow.Table = TABLE) -> Path:
    new = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
    with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=997)
    return path


@pytest.mark.parametrize("kind", ["file", "stream", "parquet"])
def test_tables(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet", row_group_size=700)
        path = tmp_path / "a.parquet"
    else:
        path = arrow_file(tmp_path / "a.arrow", kind)
    documents, rejected = split(path)
    assert [d.text for d in documents] == ["가", "나\n다", "라"] * 700
    assert [d.position for d in documents[:4]] == [0, 2, 4, 5] and documents[-1].position == 3499
    assert documents[1].fields == {"large": "큰", "coded": "하나", "tags": ["a", "b"], "n": 2}
    assert len(rejected) == 1400 and {record.reason for record in rejected} == {"no 'text'", "empty text"}
    for key in ("large", "coded"):
        assert len(split(path, key, keep_fields=False)[0]) == 3500
    assert {record.reason for record in split(path, "n")[1]} == {"'n' is no text"}
    with pytest.raises(DataError, match="no column"):
        split(path, "body")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="damaged"):
        split(path)


def test_invalid_utf8_in_a_table_is_one_bad_row(tmp_path: Path) -> None:
    bad = pyarrow.array([b"ok", b"\xff", b"ok"]).cast(pyarrow.string(), safe=False)
    inner = pyarrow.ListArray.from_arrays([0, 1, 2, 3], bad)
    table = pyarrow.table({"text": pyarrow.array(["가", "나", "다"]), "plain": bad, "inner": inner})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", arrow_file(tmp_path / "a.arrow", "file", table.drop_columns(["inner"]))):
        documents, rejected = split(path)
        assert [d.text for d in documents] == ["가", "다"]
        assert [(r.position, r.reason) for r in rejected] == [(1, "invalid UTF-8")]
        assert [d.text for d in split(path, keep_fields=False)[0]] == ["가", "나", "다"]
    # Inside of lists, nothing but a look at everything tells damage from bad text.
    with pytest.raises(DataError, match="damaged"):
        split(arrow_file(tmp_path / "b.arrow", "file", table))


def test_a_saved_dataset_is_read_in_its_own_order(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    parts = [TABLE.slice(0, 5), TABLE.slice(5, 5)]
    names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    for name, part in zip(names, parts, strict=True):
        arrow_file(folder / name, "stream", part)
    (folder / "cache-123.arrow").write_bytes(b"left over")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    assert expand_inputs([folder]) == tuple(folder / name for name in names)
    (folder / "state.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        expand_inputs([folder])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(DataError, match="several splits") as caught:
        expand_inputs([tmp_path])
    assert "train, test" in str(caught.value)


def test_folders_and_patterns_are_sorted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b/2.jsonl.gz", "b/1.txt", "a.parquet", "notes.md", "b/.hidden.txt", "b/x.parquet.gz", "[odd].txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    names = [str(path.relative_to(tmp_path)) for path in expand_inputs([tmp_path])]
    assert names == ["[odd].txt", "a.parquet", "b/1.txt", "b/2.jsonl.gz"]
    assert "2 files of other kinds" in caplog.text
    assert expand_inputs([tmp_path / "**/*.txt"]) == (tmp_path / "[odd].txt", tmp_path / "b/1.txt")
    assert expand_inputs([tmp_path / "[odd].txt"]) == (tmp_path / "[odd].txt",)
    with pytest.raises(DataError, match="no file matches"):
        expand_inputs([tmp_path / "*.csv"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no file of a known kind"):
        expand_inputs([empty])


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be"])
def test_utf16_is_named(tmp_path: Path, name: str, coding: str) -> None:
    content = "\ufeff한글\n둘째 줄\n" if coding.endswith("be") else "한글\n둘째 줄\n"
    path = packed(tmp_path / name, content.encode(coding))
    with pytest.raises(DataError, match="is in UTF-16") as caught:
        list(read_documents(path))
    assert "--encoding utf-16" in str(caught.value.remedy)


def test_of_what_was_deduplicated_only_the_documents_are_read(tmp_path: Path) -> None:
    """Not the manifest, the report or the list of what went: as .json and .jsonl they look like documents."""
    for name in ("a", "b"):
        path = tmp_path / name / "part.jsonl"
        path.parent.mkdir()
        lines = ['{"text": "하나"}'] * 2 + [json.dumps({"text": name}), "{broken"]
        path.write_text("\n".join(lines), encoding="utf-8")
    output = tmp_path / "unique"
    dedup(DedupOptions(InputFiles(expand_inputs([tmp_path / "a", tmp_path / "b"])), output))
    assert {"manifest.json", "report.json", "rejected.jsonl", "removed.jsonl.zst"} < {p.name for p in output.iterdir()}
    names = ["a-part.jsonl.zst", "b-part.jsonl.zst"]
    assert [path.name for path in expand_inputs([output])] == names
    assert [path.name for path in expand_inputs([tmp_path])] == ["part.jsonl", "part.jsonl", *names]
    (output / names[0]).unlink()
    with pytest.raises(DataError, match="no such file"):
        check_inputs(expand_inputs([output]))


def test_a_kind_can_be_told(tmp_path: Path) -> None:
    path = packed(tmp_path / "corpus.log.gz", b'{"text": "x"}\n')
    with pytest.raises(DataError, match="unknown kind"):
        check_inputs([path])
    check_inputs([path], "jsonl")
    chunks = list(read_chunks(Reading((path,), format="jsonl")))
    assert [parse_block(block).texts for _, chunk in chunks for block in chunk.blocks] == [["x"]]
    assert format_of(Path("-")) == "jsonl"
    with pytest.raises(DataError, match="standard input"):
        check_inputs([Path("-")], "parquet")
    assert expand_inputs([tmp_path], "jsonl") == (path,)


@pytest.mark.parametrize("beginning", ["[\n", "  [\n  ", "[{\n"])
def test_one_json_array_is_refused_as_a_whole(tmp_path: Path, beginning: str) -> None:
    for name in ("a.json", "a.json.gz"):
        with pytest.raises(DataError, match="one JSON array"):
            split(packed(tmp_path / name, (beginning + '{"text": "x"}\n]\n').encode()))
    # A line that begins with a bracket is a bad line, no array.
    assert len(split(packed(tmp_path / "b.jsonl", b'[1]\n{"text": "x"}\n'))[0]) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.txt", "a.csv", "a.parquet", "a.arrow", "a.wet"])
def test_chunks_hold_every_record_once_in_order(tmp_path: Path, name: str) -> None:
    texts = [f"글 {n} " + "가" * (n * 37 % 900) for n in range(3000)]
    path = tmp_path / name
    if "jsonl" in name:
        packed(path, b"\n".join(json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts))
    elif name == "a.txt":
        packed(path, "\n".join(texts).encode())
    elif name == "a.csv":
        packed(path, ("text\n" + "\n".join(texts)).encode())
    elif name == "a.wet":
        packed(path, b"".join(wet_record("conversion", text) for text in texts))
    elif name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=400)
    else:
        arrow_file(path, "stream", pyarrow.table({"text": texts}))
    small = packed(tmp_path / "small.txt", "작은\n파일\n".encode())
    chunks = list(read_chunks(Reading((path, small), chunk_bytes=200_000)))
    assert [index for index, _ in chunks] == list(range(len(chunks))) and len(chunks) > 1
    found = [text for _, chunk in chunks for block in chunk.blocks for text in parse_block(block).texts]
    assert found == [*texts, "작은", "파일"]
    unread = path.stat().st_size + small.stat().st_size - sum(chunk.read for _, chunk in chunks)
    assert 0 <= unread <= (8 if name == "a.arrow" else 0)  # the mark at the end of an Arrow stream
    positions = [p for _, chunk in chunks for block in chunk.blocks for p in parse_block(block).positions]
    assert positions[:3000] == sorted(set(positions[:3000])) and positions[3000:] == [1, 2]


def test_damage_is_told_with_its_place(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"{n * 7919 % 99991} 글"}) + "\n" for n in range(60_000)).encode()
    for suffix, damage in ((".gz", "block"), (".gz", "end"), (".zst", "block"), (".zst", "end")):
        path = packed(tmp_path / f"a.jsonl{suffix}", lines)
        content = bytearray(path.read_bytes())
        if damage == "block":
            middle = len(content) // 2
            content[middle : middle + 64] = bytes(64)
        else:
            del content[-1000:]
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path.name} is damaged") as caught:
            split(path)
        assert "at byte" in str(caught.value)


def test_identity_sees_changed_files_and_order(tmp_path: Path) -> None:
    first, second = packed(tmp_path / "a.txt", b"x" * 300_000), packed(tmp_path / "b.txt", b"y")
    before = input_identity((first, second))
    assert input_identity((first, second)) == before != input_identity((second, first))
    content = bytearray(first.read_bytes())
    content[150_000] = 0
    first.write_bytes(content)
    assert input_identity((first, second)) != before


def test_the_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import json
from pathlib import Path
from megatron_ko.data.text.documents import read_documents
from megatron_ko.data.text.inputs import content_hash, input_bytes
print(json.dumps([d.text for d in read_documents(Path("-"))]), input_bytes(Path("-")), content_hash(Path("-")))
list(read_documents(Path("-")))
"""
    content = '{"text": "하나"}\n{"text": "둘"}\n'.encode()
    for sent in (content, gzip.compress(content), zstandard.compress(content)):
        done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, cwd=ROOT)
        found, size, _ = done.stdout.decode().rsplit(" ", 2)
        assert json.loads(found) == ["하나", "둘"] and int(size) == len(sent)
        assert b"was read before" in done.stderr
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b""))))
    assert split(Path("-")) == ([], [])


def test_large_row_groups_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import megatron_ko.data.text.tables as tables

    texts = [f"글 {n}" + "가" * (n % 70) for n in range(5000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=3000)
    monkeypatch.setattr(tables, "_SLICE_BYTES", 50_000)
    chunks = [chunk for _, chunk in read_chunks(Reading((tmp_path / "a.parquet",), chunk_bytes=40_000))]
    assert len(chunks) > 5
    parsed = [parse_block(block) for chunk in chunks for block in chunk.blocks]
    assert [text for block in parsed for text in block.texts] == texts
    assert [position for block in parsed for position in block.positions] == list(range(5000))
    assert sum(chunk.read for chunk in chunks) == (tmp_path / "a.parquet").stat().st_size


def test_of_many_archives_each_is_read_by_a_worker(tmp_path: Path) -> None:
    for number in range(70):
        packed(
            tmp_path / f"{number:02d}.jsonl.gz", "".join(f'{{"text": "글 {number} {n}"}}\n' for n in range(20)).encode()
        )
    packed(tmp_path / "99.txt", "평문\n".encode())
    inputs = expand_inputs([tmp_path])
    (chunk,) = [chunk for _, chunk in read_chunks(Reading(inputs))]
    assert [type(span).__name__ for span in chunk.spans] == ["FileSpan"] * 70 + ["LineSpan"]
    found = [(block.source, text) for block in chunk.blocks for text in parse_block(block).texts]
    assert found == [
        *((str(tmp_path / f"{number:02d}.jsonl.gz"), f"글 {number} {n}") for number in range(70) for n in range(20)),
        (str(tmp_path / "99.txt"), "평문"),
    ]
    assert chunk.read == sum(path.stat().st_size for path in inputs)


def test_inputs_that_change_while_they_are_read_are_told(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.txt", b"x" * 300_000)
    seen = json.loads(json.dumps(input_identity((path, Path("-")))))
    check_unchanged(seen, tmp_path)
    with path.open("ab") as stream:
        stream.write(b"more\n")
    with pytest.raises(DataError, match=r"a\.txt has changed") as caught:
        check_unchanged(seen, tmp_path)
    assert "300,005 bytes" in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        check_unchanged(seen, tmp_path)
