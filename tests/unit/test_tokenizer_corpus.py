"""Balanced samples: shares are what was asked for, nothing is repeated, and weights must fit."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ko.data.tokenizer import TokenizerOptions, train_tokenizer
from megatron_ko.data.tokenizer.corpus import Corpus, CorpusSampling, Group, sample_shares
from megatron_ko.errors import DataError

SIZES = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 10**12), min_size=1, max_size=6)


def _groups(sizes: dict[str, int]) -> dict[str, Group]:
    return {name: Group(name, 1, size) for name, size in sizes.items()}


@given(sizes=SIZES, temperature=st.floats(1, 100), limit=st.integers(1, 10**13))
def test_shares_keep_proportions_and_the_limit(sizes: dict[str, int], temperature: float, limit: int) -> None:
    shares = sample_shares(_groups(sizes), CorpusSampling(max_bytes=limit, temperature=temperature))
    taken = {name: shares[name] * size for name, size in sizes.items()}
    assert all(0 <= share <= 1 for share in shares.values())
    assert sum(taken.values()) <= limit * (1 + 1e-9)
    raw = {name: size ** (1 / temperature) for name, size in sizes.items()}
    for name in sizes:
        assert taken[name] / sum(taken.values()) == pytest.approx(raw[name] / sum(raw.values()), rel=1e-6)
    assert max(shares.values()) == pytest.approx(1) or sum(taken.values()) == pytest.approx(limit, rel=1e-6)


@given(sizes=SIZES, data=st.data())
def test_explicit_weights_are_met(sizes: dict[str, int], data: st.DataObject) -> None:
    weights = {name: data.draw(st.floats(0.01, 10)) for name in sizes}
    shares = sample_shares(_groups(sizes), CorpusSampling(max_bytes=10**15, weights=weights))
    taken = {name: shares[name] * size for name, size in sizes.items()}
    for name in sizes:
        assert taken[name] / sum(taken.values()) == pytest.approx(weights[name] / sum(weights.values()), rel=1e-6)


def _corpus(folder: Path) -> list[Path]:
    for name, text, number in (("ko", "학교에서 사람이 말했다", 3000), ("en", "the cat sat on the mat", 500)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            for index in range(number):
                record = {"text": f"{text} {index}", "language": name}
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return [folder / "ko.jsonl", folder / "en.jsonl"]


def test_files_or_languages_are_balanced(tmp_path: Path) -> None:
    inputs = _corpus(tmp_path)
    for by, names in (("source", ("ko.jsonl", "en.jsonl")), ("language", ("ko", "en"))):
        corpus = Corpus(inputs, CorpusSampling(balance_by=by, weights={names[0]: 0.5, names[1]: 0.5}))
        groups = corpus.groups
        assert tuple(groups) == names
        assert groups[names[1]].trained_documents == 500
        assert groups[names[0]].trained_bytes == pytest.approx(groups[names[1]].trained_bytes, rel=0.15)
        texts = list(corpus.texts())
        assert len(texts) == corpus.trained_documents and texts == list(corpus.texts())


def test_what_can_be_read_once_only_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be read several times"):
        Corpus([Path("-")], CorpusSampling())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    inputs = _corpus(tmp_path)
    for weights in ({"ko.jsonl": 1.0}, {"ko.jsonl": 1.0, "fr": 1.0}, {"ko.jsonl": 1.0, "en.jsonl": -1.0}):
        with pytest.raises(DataError, match="weights do not fit"):
            Corpus(inputs, CorpusSampling(weights=weights))
    with pytest.raises(DataError, match="all weights are 0"):
        Corpus(inputs, CorpusSampling(weights={"ko.jsonl": 0.0, "en.jsonl": 0.0}))


def test_training_reports_what_it_took(tmp_path: Path) -> None:
    options = TokenizerOptions("byte-bpe", 300, weights={"ko.jsonl": 0.2, "en.jsonl": 0.8})
    report = train_tokenizer(_corpus(tmp_path), tmp_path / "tok", options)
    assert [group.name for group in report.groups] == ["ko.jsonl", "en.jsonl"]
    assert report.groups[1].trained_bytes / report.trained_bytes == pytest.approx(0.8, abs=0.05)
    assert report.trained_share == 1.0
