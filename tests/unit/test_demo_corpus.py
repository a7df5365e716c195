"""The demo corpus is what it promises to be, and its generator gives the same bytes to everyone."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import unicodedata
import zlib
from argparse import ArgumentTypeError
from itertools import islice
from pathlib import Path

import pytest
from generate import (
    CORPUS,
    GENRES,
    NO_FINAL,
    PARTICLES,
    attach,
    documents,
    final_consonant,
    generate,
    handwritten,
    lines,
    main,
    parse_size,
)
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

GENERATOR = CORPUS.parent / "generate.py"
# sha256 of generate(1 MB, seed 7) as JSON lines; changes when the corpus or the templates change, and only then.
GOLDEN_1MB = "31545f93a6fc5166eaf4fe7fa68500a1e7ef7debddd80884af8006384bf3bd64"
TEXTS = {document["title"]: document["text"] for document in handwritten()}


def digest(size: int, seed: int) -> str:
    return hashlib.sha256(b"".join(line for _, line in lines(size, seed))).hexdigest()


# The hand-written corpus


@pytest.mark.parametrize("genre", GENRES)
def test_file_is_clean_json_lines(genre: str) -> None:
    content = (CORPUS / f"{genre}.jsonl").read_text(encoding="utf-8")
    assert content.endswith("\n")
    for line in content.removesuffix("\n").split("\n"):
        document = json.loads(line)
        assert set(document) == {"text", "genre", "title"}
        assert document["genre"] == genre
        assert unicodedata.is_normalized("NFC", line)
        assert 600 <= len(document["text"].encode()) <= 2500, document["title"]
        assert not re.search(r"\r|\ufffd|\ufeff|[ \t]$", document["text"], flags=re.MULTILINE), document["title"]


def test_corpus_is_large_and_without_repetition() -> None:
    assert sum(len(text.encode()) for text in TEXTS.values()) >= 100_000
    assert 60 <= len(TEXTS) == len(handwritten()), "titles repeat"
    long_lines = [line for text in TEXTS.values() for line in text.split("\n") if len(line) > 25]
    assert len(long_lines) == len(set(long_lines))


@pytest.mark.parametrize(
    ("what", "pattern", "least"),
    [
        ("hanja in parentheses", r"[가-힣]\([\u4e00-\u9fff]+\)", 50),
        ("emoji", r"[\U0001f300-\U0001faff]", 25),
        ("runs of jamo", r"[ㅋㅎㅠ]{2,}", 20),
        ("polite endings", r"(습니다|세요|어요|니까)[.?!]", 80),
        ("tabs in code", r"\n\t+\S", 12),
        ("indented code", r"\n    \S", 30),
        ("percentages", r"\d%", 20),
        ("thousands", r"\d,\d{3}", 25),
        ("numbered steps", r"(?m)^\d+\. ", 70),
        ("tables", r"(?m)^\|[-:|]+\|$", 6),
        ("quotations", r"[\"'“][가-힣]", 100),
        ("English", r"[A-Za-z]{4,}", 300),
    ],
)
def test_corpus_has_variety(what: str, pattern: str, least: int) -> None:
    assert len(re.findall(pattern, "\n\n".join(TEXTS.values()))) >= least, what


@pytest.mark.parametrize("language", ["python", "bash", "console", "sql", "yaml", "make", "go", "json", "http"])
def test_corpus_has_code_in(language: str) -> None:
    assert any(f"```{language}\n" in text for text in TEXTS.values())


def test_python_in_corpus_is_python() -> None:
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)]
    programs = [block for block in blocks if not block.startswith(">>>")]
    assert len(programs) >= 8
    for program in programs:
        ast.parse(program)


def test_corpus_names_no_real_address() -> None:
    everything = "\n".join(TEXTS.values()) + (CORPUS / "templates.toml").read_text(encoding="utf-8")
    hosts = re.findall(r"https?://([^/\s)]+)", everything)
    assert hosts and all(host == "example.com" or host.endswith(".example.com") for host in hosts)
    assert not re.search(r"\b0\d{1,2}-\d{3,4}-\d{4}\b|[\w.]+@[\w.]+\.\w+", everything)


# Particles


@pytest.mark.parametrize(
    ("word", "particle", "expected"),
    [
        ("산", "은", "산은"), ("바다", "은", "바다는"), ("꽃", "이", "꽃이"), ("나무", "이", "나무가"),
        ("밥", "을", "밥을"), ("차", "을", "차를"), ("돌", "과", "돌과"), ("나비", "과", "나비와"),
        ("집", "으로", "집으로"), ("학교", "으로", "학교로"), ("서울", "으로", "서울로"), ("연필", "을", "연필을"),
        ("민들레", "아", "민들레야"), ("다솜", "아", "다솜아"), ("미르", "이다", "미르다"), ("봄", "이랑", "봄이랑"),
        ("대한민국(大韓民國)", "은", "대한민국(大韓民國)은"), ("나루(津)", "과", "나루(津)와"),
        ("《소나기》", "을", "《소나기》를"), ("'단디'", "은", "'단디'는"),
        ("1", "으로", "1로"), ("2", "은", "2는"), ("3", "을", "3을"), ("6", "이", "6이"), ("7", "으로", "7로"),
        ("9", "과", "9와"), ("10", "으로", "10으로"), ("1,000", "은", "1,000은"), ("0.5", "이", "0.5가"),
        ("SQL", "으로", "SQL로"), ("SQL", "은", "SQL은"), ("YAML", "을", "YAML을"), ("CSV", "을", "CSV를"),
        ("PDF", "으로", "PDF로"), ("LLM", "으로", "LLM으로"), ("DNA", "이", "DNA가"),
    ],
)  # fmt: skip
def test_particle_follows_the_last_sound(word: str, particle: str, expected: str) -> None:
    assert attach(word, particle) == expected


@given(st.characters(min_codepoint=ord("가"), max_codepoint=ord("힣")), st.sampled_from(sorted(PARTICLES)))
def test_particle_agrees_with_unicode_decomposition(syllable: str, particle: str) -> None:
    jamo = unicodedata.normalize("NFD", syllable)
    assert (final_consonant(syllable) == NO_FINAL) == (len(jamo) == 2)
    closed = len(jamo) == 3 and not (particle == "으로" and jamo[2] == "\u11af")
    assert attach("가" + syllable, particle) == "가" + syllable + PARTICLES[particle][0 if closed else 1]


@pytest.mark.parametrize("word", ["", "token", "(大韓)", "漢江", "😄"])
def test_unknown_sound_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="cannot tell how"):
        attach(word, "은")


def test_templates_leave_no_particle_to_chance() -> None:
    templates = (CORPUS / "templates.toml").read_text(encoding="utf-8")
    assert not re.findall(r"\{[가-힣]+\d?\}(?:을|를|은|는|이|가|과|와|로|으로|야|아|이다)[ ,.?!\"]", templates)


# The generator


def test_same_seed_gives_the_golden_bytes() -> None:
    assert digest(1_000_000, 7) == GOLDEN_1MB


def test_another_process_with_another_hash_seed_gives_the_same_file(tmp_path: Path) -> None:
    output = tmp_path / "corpus.jsonl"
    command = [sys.executable, GENERATOR, "--size", "1MB", "--seed", "7", "--output", output]
    subprocess.run(command, check=True, timeout=PATIENCE, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "4242"})
    assert hashlib.sha256(output.read_bytes()).hexdigest() == GOLDEN_1MB
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_reading_in_chunks_beside_another_stream_changes_nothing() -> None:
    whole = list(generate(600_000, 3))
    stream, other, chunks = generate(600_000, 3), generate(600_000, 4), []
    while chunk := list(islice(stream, 17)):
        chunks += chunk
        list(islice(other, 5))
    assert chunks == whole


def test_smaller_size_is_a_prefix_and_another_seed_another_text() -> None:
    small, large = list(generate(200_000, 7)), list(generate(500_000, 7))
    assert large[: len(small)] == small
    assert digest(200_000, 8) != digest(200_000, 7)


@pytest.mark.parametrize("size", [0, 1, 100_000, 250_000, 2_000_000])
def test_size_is_kept_within_one_document(size: int) -> None:
    lengths = [len((json.dumps(document, ensure_ascii=False) + "\n").encode()) for document in generate(size, 5)]
    assert sum(lengths) >= size
    assert sum(lengths[:-1]) < max(size, 1)
    assert max(lengths, default=0) < 4000


def test_handwritten_documents_come_first_and_all() -> None:
    first = list(islice(documents(11), len(TEXTS)))
    assert {document["title"] for document in first} == set(TEXTS)
    assert first != list(islice(documents(12), len(TEXTS)))


def test_composed_documents_are_distinct_and_varied() -> None:
    composed = list(generate(5_000_000, 9))[len(TEXTS) :]
    texts = [document["text"] for document in composed]
    assert len(set(texts)) >= 0.999 * len(texts)
    assert len({document["title"] for document in composed}) == len(composed)
    assert {document["genre"] for document in composed} == set(GENRES)
    everything = "\n".join(texts)
    assert unicodedata.is_normalized("NFC", everything)
    assert not re.search(r"\{[가-힣]|%\(|%%", everything), "a slot was left open"
    assert "\n\t" in everything and "ㅋㅋ" in everything and "(城門)" in everything
    # Text made of few repeated sentences would pack to a few per cent; the hand-written corpus packs to 43 %.
    packed = zlib.compress(everything.encode(), 9)
    assert len(packed) > 0.18 * len(everything.encode())


def test_composed_words_of_a_pair_differ() -> None:
    routes = re.findall(r"([동서남북]+쪽)에는 [가-힣]+ 있고 ([동서남북]+쪽)으로", repr(list(generate(3_000_000, 2))))
    assert len(routes) > 50
    assert all(first != second for first, second in routes)


@pytest.mark.parametrize(
    ("text", "size"),
    [("50MB", 50_000_000), ("1.5 GiB", 1_610_612_736), ("4000000", 4_000_000), ("12kb", 12_000), ("3M", None)],
)
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(ArgumentTypeError, match="expected for example 50MB"):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "name", "message"),
    [("1KB", "taken.jsonl", "exists"), ("1KB", "missing/x.jsonl", "no folder"), ("much", "new.jsonl", "not a size")],
)
def test_user_errors_exit_2_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str, name: str, message: str
) -> None:
    (tmp_path / "taken.jsonl").write_text("mine")
    with pytest.raises(SystemExit) as error:
        main(["--size", size, "--output", str(tmp_path / name)])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"taken.jsonl": "mine"}
