"""Planted near-duplicates are found, strangers are left alone, and what stays is not touched by a single byte."""

import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from planted import editor
from test_dedup_run import kept_of, lines_of, write

from megatron_ko.data.dedup.dedup import dedup
from megatron_ko.data.dedup.options import DedupOptions, InputFiles, Near

Korean = Callable[..., list[str]]


def documents(korean: Korean, number: int) -> list[str]:
    """Documents of several hundred words that share their words, but not their sentences."""
    sentences = korean(number * 12, 42)
    return [" ".join(sentences[start::number]) for start in range(number)]


@pytest.mark.parametrize("kind", ["words", "block"])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_edited_copies_are_found(tmp_path: Path, korean: Korean, kind: str, rate: float) -> None:
    texts = documents(korean, 150)
    copies = list(map(editor(texts, kind, rate, seed=0), texts))
    dedup(DedupOptions(InputFiles((write(tmp_path / "a.jsonl", texts + copies),)), tmp_path / "out", near=Near()))
    removed = {line["position"]: line["kept_position"] for line in lines_of(tmp_path / "out/removed.jsonl.zst")}
    assert sum(kept == position - 150 for position, kept in removed.items()) >= 0.95 * 150
    assert all(kept == position - 150 for position, kept in removed.items())


def test_real_documents_with_a_fifth_of_their_words_edited(tmp_path: Path, shared_data: Path) -> None:
    with gzip.open(shared_data / "tech_docs_ko.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:200]
    copies = list(map(editor(texts, "words", 0.2, seed=3), texts))
    everything = texts + copies
    dedup(DedupOptions(InputFiles((write(tmp_path / "a.jsonl", everything),)), tmp_path / "out", near=Near()))
    kept = kept_of(tmp_path / "out", "a")
    stays = {place for place, _ in kept}
    assert sum(not {place, place + 200} <= stays for place in range(200)) >= 0.95 * 200
    assert all(text == everything[place] for place, text in kept)


def test_decomposed_hangul_is_compared_composed_and_written_as_it_was(tmp_path: Path, korean: Korean) -> None:
    texts = documents(korean, 6)
    decomposed = [unicodedata.normalize("NFD", text) for text in texts[:4]]
    assert decomposed[0] != texts[0]
    path = write(tmp_path / "a.jsonl", [decomposed[0], *texts[1:], texts[0], *decomposed[1:]])
    dedup(DedupOptions(InputFiles((path,)), tmp_path / "out", near=Near()))
    kept = kept_of(tmp_path / "out", "a")
    assert [text for _, text in kept] == [decomposed[0], *texts[1:]]
    assert all(unicodedata.is_normalized("NFC", text) for _, text in kept[1:])
