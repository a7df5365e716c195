"""Readers: every record becomes a document or is rejected with where and why; damage of a file is an error."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megatron_ko.data.text.blocks import BLOCK_BYTES, Block, check_inputs, read_blocks
from megatron_ko.data.text.documents import Document, Rejected, parse_block, read_documents
from megatron_ko.errors import DataError


def split(path: Path, **options: str) -> tuple[list[Document], list[Rejected]]:
    records = list(read_documents(path, **options))
    documents = [record for record in records if isinstance(record, Document)]
    return documents, [record for record in records if isinstance(record, Rejected)]


def write(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        # Two frames, as parallel compressors and `cat` write them.
        half = len(content) // 2
        content = zstandard.compress(content[:half]) + zstandard.compress(content[half:])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_every_line_of_jsonl_is_accounted_for(tmp_path: Path, suffix: str) -> None:
    lines = [
        b'{"text": "\xea\xb0\x80 \\n\\t\\u3131"}',
        b"",
        b'{"text": "\xff"}',
        b"{broken",
        b"[1]",
        b'{"title": "x"}',
        b'{"text": null}',
        b'{"text": 3}',
        b'{"text": ["a"]}',
        b'{"text": "  "}',
        b'{"text": "\\ud800"}',
        b'"text"',
        b'{"text": "last", "other": {"text": "no"}}\r',
    ]
    documents, rejected = split(write(tmp_path / f"a.jsonl{suffix}", b"\xef\xbb\xbf" + b"\n".join(lines)))
    assert [(document.text, document.position) for document in documents] == [("가 \n\tㄱ", 1), ("last", 13)]
    assert [(record.position, record.reason.split(":")[0]) for record in rejected] == [
        (3, "invalid UTF-8"),
        (4, "malformed JSON"),
        (5, "malformed JSON"),
        (6, "no 'text'"),
        (7, "no 'text'"),
        (8, "'text' is no text"),
        (9, "'text' is no text"),
        (10, "empty text"),
        (11, "malformed JSON"),
        (12, "malformed JSON"),
    ]
    assert rejected[0].excerpt == '{"text": "\\xff"}'


def test_text_lines(tmp_path: Path) -> None:
    content = "첫째\r\n\n  들여 쓴\t줄 \n\u2028같은 줄\u0085끝".encode() + b"\n\xb0\xa1 euc-kr"
    documents, rejected = split(write(tmp_path / "a.txt.gz", content))
    assert [document.text for document in documents] == ["첫째", "  들여 쓴\t줄 ", "\u2028같은 줄\u0085끝"]
    assert [(record.position, record.reason) for record in rejected] == [(5, "invalid UTF-8")]
    whole, _ = split(write(tmp_path / "b.txt", "한 줄\n\n두 줄\n".encode()), text_unit="file")
    assert [document.text for document in whole] == ["한 줄\n\n두 줄\n"]


def test_parquet(tmp_path: Path) -> None:
    for kind in (pyarrow.string(), pyarrow.large_string()):
        path = tmp_path / f"{kind}.parquet"
        values = pyarrow.array(["가", None, "", "나\n다"] * 600, type=kind)
        pyarrow.parquet.write_table(pyarrow.table({"text": values, "n": range(2400)}), path, row_group_size=700)
        documents, rejected = split(path)
        assert [document.text for document in documents[:2]] == ["가", "나\n다"]
        assert len(documents) == len(rejected) == 1200
        assert [document.position for document in documents[:3]] == [0, 3, 4]
        assert {record.reason for record in rejected} == {"no 'text'", "empty text"}
    documents, rejected = split(path, key="n")
    assert not documents and {record.reason for record in rejected} == {"'n' is no text"}
    with pytest.raises(DataError, match="no column 'body'"):
        split(path, key="body")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged"):
        split(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_archive_is_an_error_not_an_end(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.jsonl{suffix}", b'{"text": "%d"}\n' * 9999)
    assert len(split(path)[0]) == 9999
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="damaged"):
        split(path)
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(DataError, match="damaged"):
        split(path)


def test_blocks_hold_whole_lines_and_number_them(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{n} " + "가" * (n % 5000)}, ensure_ascii=False) for n in range(1500)]
    lines[700] = json.dumps({"text": "x" * (3 * BLOCK_BYTES)})
    path = write(tmp_path / "a.jsonl", "\n".join(lines).encode())
    blocks = list(read_blocks(path))
    assert len(blocks) > 4
    assert b"".join(block.payload for block in blocks) == path.read_bytes()
    assert blocks[-1].read == path.stat().st_size
    documents, rejected = split(path)
    assert [document.position for document in documents] == list(range(1, 1501)) and not rejected


@given(
    lines=st.lists(st.binary(max_size=30) | st.sampled_from([b'{"text": "a"}', b'{"text":', b"{}", b" "]), max_size=30)
)
def test_no_record_is_lost_whatever_the_bytes(lines: list[bytes]) -> None:
    payload = b"\n".join(lines)
    records = [line for line in payload.split(b"\n") if line.strip()]
    for format in ("jsonl", "txt"):
        parsed = parse_block(Block("x", format, 1, payload, 0))
        whitespace = sum(not (line.decode(errors="replace")).strip() for line in records) if format == "txt" else 0
        assert len(parsed.texts) + len(parsed.rejected) == len(records) - whitespace
        assert len(parsed.positions) == len(parsed.texts)
        assert not {record.position for record in parsed.rejected} & set(parsed.positions)


@pytest.mark.parametrize("name", ["a.md", "a.parquet.gz", "a", "a.json.bz2"])
def test_unknown_kinds_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="unknown kind"):
        check_inputs([write(tmp_path / name, b"x")])


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", "가\n".encode())
    copy = write(tmp_path / "b.txt", "가\n".encode())
    other = write(tmp_path / "c.txt", "나\n".encode())
    link = tmp_path / "d.txt"
    link.symlink_to(first)
    check_inputs([first, other])
    for twice in ([first, first], [first, copy], [other, first, link]):
        with pytest.raises(DataError, match="given twice"):
            check_inputs(twice)
    with pytest.raises(DataError, match="no such file"):
        check_inputs([tmp_path / "nowhere.txt"])
    with pytest.raises(DataError, match="no input"):
        check_inputs([])


def test_real_corpora_are_read_whole(shared_data: Path) -> None:
    documents, rejected = split(shared_data / "tech_docs_ko.jsonl.gz")
    assert len(documents) == 396 and not rejected
