"""Text in CP949 and UTF-16: read when it is said or found out, and else an error that says how."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ko.data.clean.clean import CleanOptions, clean
from megatron_ko.data.clean.config import load_clean_config
from megatron_ko.data.dedup.decontaminate import DecontaminateOptions, decontaminate
from megatron_ko.data.dedup.dedup import dedup
from megatron_ko.data.dedup.evaluation import NgramRule
from megatron_ko.data.dedup.options import DedupOptions, InputFiles
from megatron_ko.data.jobs.chunks import read_chunks
from megatron_ko.data.text.documents import Document, Rejected, parse_block, read_documents
from megatron_ko.data.text.encodings import looks_like_cp949
from megatron_ko.data.text.formats import Encoding, OutputFormat, TextUnit
from megatron_ko.data.text.records import Reading
from megatron_ko.data.text.streams import file_encoding
from megatron_ko.data.tokenizer import TokenizerOptions, train_tokenizer
from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess
from megatron_ko.errors import DataError

ROOT = Path(__file__).parents[2]
Korean = Callable[..., list[str]]
TEXTS = ["첫째 줄입니다", "펲시콜라와 뷁", "English only", "셋째 漢字 ㈜"]
AUTO, UTF_8, CP949, UTF_16 = Encoding.auto, Encoding.utf_8, Encoding.cp949, Encoding.utf_16


def content_of(name: str, texts: list[str] = TEXTS) -> str:
    if name.startswith("a.jsonl"):
        return "".join(json.dumps({"text": text, "name": "이름"}, ensure_ascii=False) + "\n" for text in texts)
    if name.startswith("a.txt"):
        return "\n".join(texts) + "\n"
    return "name\ttext\n" + "".join(f"이름\t{text}\n" for text in texts)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path, encoding: Encoding) -> tuple[list[str], list[Rejected]]:
    records = list(read_documents(path, encoding=encoding, keep_fields=True))
    documents = [record for record in records if isinstance(record, Document)]
    assert all(document.fields.get("name", "이름") == "이름" for document in documents)
    return [document.text for document in documents], [one for one in records if isinstance(one, Rejected)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt", "a.txt.gz", "a.tsv"])
@pytest.mark.parametrize("encoding", [UTF_8, CP949, UTF_16])
def test_every_format_is_read_in_every_encoding(tmp_path: Path, name: str, encoding: Encoding) -> None:
    path = written(tmp_path / name, content_of(name).encode(encoding.value))
    for said in (encoding, AUTO):
        assert read(path, said) == (TEXTS, [])
    for said in {UTF_8, CP949} - {encoding}:
        with pytest.raises(DataError, match=f"is in {encoding.value.upper()}") as caught:
            read(path, said)
        assert f"--encoding {encoding.value}" in str(caught.value.remedy)
    if encoding is not UTF_16:
        with pytest.raises(DataError, match="is not in UTF-16"):
            read(path, UTF_16)


def test_whole_files(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "여기 한 줄\n\n그리고 두 줄\n".encode("cp949"))
    (document,) = read_documents(path, text_unit=TextUnit.file, encoding=CP949)
    assert isinstance(document, Document) and document.text == "여기 한 줄\n\n그리고 두 줄\n"
    with pytest.raises(DataError, match="is in CP949"):
        list(read_documents(path, text_unit=TextUnit.file))


def test_what_cannot_be_decoded_is_rejected_with_its_line(tmp_path: Path) -> None:
    lines = ["하나".encode("cp949"), b"\xc3\xa9 \xff", "둘".encode("cp949"), "갃".encode(), b"\xb0"]
    path = written(tmp_path / "a.txt", b"\n".join(lines))
    texts, rejected = read(path, CP949)
    assert texts == ["하나", "둘"]
    assert [(one.position, one.reason) for one in rejected] == [(n, "invalid CP949") for n in (2, 4, 5)]
    assert [one.reason for one in read(path, UTF_8)[1]] == ["invalid UTF-8"] * 4
    with pytest.raises(DataError, match="is in no one encoding") as caught:
        read(path, AUTO)
    assert "no UTF-8 at line 1, no CP949 at line 2" in str(caught.value)
    odd = written(tmp_path / "b.txt", "하나\n둘\n".encode("utf-16") + b"\x00\xd8\n\x00")
    assert [one.reason for one in read(odd, UTF_16)[1]] == ["invalid UTF-16"]


def test_damaged_utf8_is_not_taken_for_cp949(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "하나\n둘\n".encode() + "셋\n".encode("cp949"))
    assert read(path, UTF_8)[0] == ["하나", "둘"]
    assert not looks_like_cp949(b"caf\xe9 latin one\n\xff")


@given(st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1), st.binary(max_size=2))
def test_utf8_is_never_called_cp949(text: str, damage: bytes) -> None:
    assert not looks_like_cp949(text.encode() + damage)
    assert not looks_like_cp949("\x81".encode())  # both
    assert looks_like_cp949(f"{text} 가나다라마바사아".encode("cp949"))


def test_the_encoding_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.jsonl", content_of("a.jsonl").encode("cp949"))
    written(tmp_path / "b.jsonl", content_of("a.jsonl").encode())
    for _ in range(3):
        assert file_encoding(path, AUTO) is CP949 and file_encoding(tmp_path / "b.jsonl", AUTO) is UTF_8
    assert [record.getMessage() for record in caplog.records] == [f"{path}: read as CP949"]
    with pytest.raises(DataError, match="standard input"):
        file_encoding(Path("-"), AUTO)


def test_large_files_come_in_blocks(tmp_path: Path, korean: Korean) -> None:
    """Characters of two bytes are cut at the borders of what is read at once."""
    texts = [text.replace("\n", " ") for text in korean(9000, 3)]
    path = written(tmp_path / "a.txt", "\n".join(texts).encode("cp949"))
    blocks = [
        b for _, chunk in read_chunks(Reading((path,), encoding=CP949, chunk_bytes=1 << 18)) for b in chunk.blocks
    ]
    assert len(blocks) > 1
    assert [text for block in blocks for text in parse_block(block).texts] == texts


def test_every_verb_reads_it(tmp_path: Path, korean: Korean, tokenizer_folder: Callable[[str], Path]) -> None:
    texts = [*korean(40, 2), korean(40, 2)[3]]
    old = written(tmp_path / "cp949/a.jsonl", content_of("a.jsonl", texts).encode("cp949"))
    new = written(tmp_path / "utf8/a.jsonl", content_of("a.jsonl", texts).encode())
    found: dict[str, list[bytes]] = {}
    config = load_clean_config(written(tmp_path / "clean.yaml", b"stages: [unicode]\n"))
    for path, encoding in ((old, CP949), (old, AUTO), (new, UTF_8)):
        out = tmp_path / f"{encoding}-{path.parent.name}"
        preprocess(PreprocessOptions((path,), tokenizer_folder("unigram"), out / "tokens", encoding=encoding))
        clean(CleanOptions((path,), out / "clean", config, format=OutputFormat.jsonl, encoding=encoding))
        files = InputFiles((path,), encoding=encoding)
        assert dedup(DedupOptions(files, out / "unique", suffix=".jsonl")).manifest["documents"]["out"] == 40
        options = DecontaminateOptions(files, out / "clear", (old,), grams=NgramRule("eojeol", 4, 2), suffix=".jsonl")
        assert decontaminate(replace(options, input=files))["documents"]["out"] < 20
        report = train_tokenizer([path], out / "tok", TokenizerOptions("bpe", 440, encoding=encoding))
        contents = [(out / name).read_bytes() for name in ("tokens.bin", "clean/clean-00000.jsonl", "unique/a.jsonl")]
        found[out.name] = [*contents, report.fingerprint.encode()]
    assert len(found) == 3 and len({tuple(one) for one in found.values()}) == 1


@pytest.mark.parametrize("verb", ["preprocess", "clean", "dedup", "train"])
def test_the_message_names_the_option(tmp_path: Path, verb: str, tokenizer_folder: Callable[[str], Path]) -> None:
    path = written(tmp_path / "a.jsonl", content_of("a.jsonl").encode("cp949"))
    words = {
        "preprocess": ["data", "preprocess", "--tokenizer", str(tokenizer_folder("unigram"))],
        "clean": ["data", "clean", "--config", str(ROOT / "configs/clean/korean-web.yaml")],
        "dedup": ["data", "dedup"],
        "train": ["tokenizer", "train", "--vocab-size", "400"],
    }[verb]
    command = [
        sys.executable,
        "-m",
        "megatron_ko.cli.main",
        *words,
        "--input",
        str(path),
        "--output",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "is in CP949 (EUC-KR)" in done.stderr and "--encoding cp949" in done.stderr
