"""Normalisation, shingles, signatures and similarity, against the definitions written out in plain Python."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_ko.data.dedup.lsh import Bands, bands_for, check_bands
from megatron_ko.data.dedup.minhash import band_keys, signatures
from megatron_ko.data.dedup.normalise import Normalisation, parse_normalisation
from megatron_ko.data.dedup.shingles import Shingles, parse_shingles, shingle_hashes, word_hashes
from megatron_ko.data.dedup.similarity import SKETCH, jaccard, sketches
from megatron_ko.errors import DataError

ROOT = Path(__file__).parents[2]
TEXTS = st.lists(st.text("가나다한글 \n\u3000aB1ㅋ🙂", max_size=60), max_size=12)


def windows(text: str, shingles: Shingles) -> list[object]:
    units: list[str] = list(text) if shingles.unit == "char" else text.split()
    if len(units) < shingles.size:
        return [tuple(units)] if units else []
    return [tuple(units[start : start + shingles.size]) for start in range(len(units) - shingles.size + 1)]


def plain_jaccard(left: str, right: str, shingles: Shingles) -> float:
    a, b = set(windows(left, shingles)), set(windows(right, shingles))
    return len(a & b) / max(1, len(a | b))


@given(TEXTS, st.sampled_from(["char:5", "char:1", "word:1", "word:3"]))
@example(["가 나", "", " ", "나 가", "가 나"], "word:2")
def test_hashes_are_equal_exactly_where_windows_are(texts: list[str], kind: str) -> None:
    shingles = parse_shingles(kind)
    hashes = shingle_hashes(texts, shingles)
    expected = [windows(text, shingles) for text in texts]
    assert hashes.lengths.tolist() == [len(row) for row in expected]
    by_window: dict[object, int] = {}
    for row, found in zip(expected, range(len(texts)), strict=True):
        for window, value in zip(row, hashes[found].tolist(), strict=True):
            assert by_window.setdefault(window, value) == value
    assert len(set(by_window.values())) == len(by_window)


def test_long_texts_are_hashed_like_short_ones() -> None:
    rng = np.random.default_rng(1)
    long = "".join(map(chr, rng.integers(0xAC00, 0xD7A3, 700_000).tolist()))
    spaced = " ".join(long[start : start + 7] for start in range(0, len(long), 7))
    for text, kind in ((long, "char:5"), (spaced, "word:3")):
        shingles = parse_shingles(kind)
        whole = shingle_hashes(["앞", text, "뒤"], shingles)[1]
        assert np.array_equal(shingle_hashes([text[:4000]], shingles)[0][:400], whole[:400])
        assert np.array_equal(shingle_hashes([text[-4000:]], shingles)[0][-400:], whole[-400:])


@given(st.lists(st.text("가나 \n\t\u3000x", max_size=20), max_size=6))
def test_words_know_where_they_stand(texts: list[str]) -> None:
    words = word_hashes(texts)
    for row, text in enumerate(texts):
        here = slice(words.words.offsets[row], words.words.offsets[row + 1])
        assert [text[a:b] for a, b in zip(words.begins[here], words.ends[here], strict=True)] == text.split()


def test_every_white_space_parts_words() -> None:
    blanks = [chr(point) for point in range(0x110000) if chr(point).isspace()]
    words = word_hashes(["가".join(blanks)])
    assert words.words.values.size == len(blanks) - 1


def test_hashes_are_the_same_forever() -> None:
    """Signatures on disk outlive processes and releases: these numbers must not change."""
    text = "동해물과 백두산이 마르고 닳도록"
    assert shingle_hashes([text], Shingles())[0][:2].tolist() == [1791230789764075778, 11530481254305796049]
    code = (
        "from megatron_ko.data.dedup.shingles import *; from megatron_ko.data.dedup.minhash import *;"
        f"print(signatures(shingle_hashes([{text!r}], Shingles()), 20)[0].tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == str(signatures(shingle_hashes([text], Shingles()), 20)[0].tolist())


@given(TEXTS)
def test_signatures_do_not_depend_on_the_batch(texts: list[str]) -> None:
    together = signatures(shingle_hashes(texts, Shingles()), 40)
    for text, row in zip(texts, together, strict=True):
        assert np.array_equal(signatures(shingle_hashes([text], Shingles()), 40)[0], row)


@pytest.mark.parametrize("length", [12, 60, 400, 5000])
def test_signatures_agree_as_often_as_the_documents_are_alike(length: int) -> None:
    """Over many pairs: unbiased, and no more spread than independent permutations would be."""
    rng = np.random.default_rng(length)
    left, right = [], []
    for _ in range(150):
        text = rng.integers(0xAC00, 0xD7A3, length)
        other = text.copy()
        other[rng.random(length) < 0.08] = 0x41
        left.append("".join(map(chr, text.tolist())))
        right.append("".join(map(chr, other.tolist())))
    true = np.array([plain_jaccard(a, b, Shingles()) for a, b in zip(left, right, strict=True)])
    hashes = 200
    a, b = (signatures(shingle_hashes(side, Shingles()), hashes) for side in (left, right))
    error = (a == b).mean(axis=1) - true
    spread = np.sqrt(np.mean(true * (1 - true)) / hashes)
    assert abs(error.mean()) < 4 * spread / np.sqrt(len(true))
    assert error.std() < 1.25 * spread
    found = (band_keys(a, 50, 4) == band_keys(b, 50, 4)).any(axis=1).mean()
    expected = np.mean([Bands(50, 4).candidate_probability(similarity) for similarity in true])
    assert abs(found - expected) < 0.12


@given(TEXTS, TEXTS)
def test_similarity_of_short_documents_is_exact(left: list[str], right: list[str]) -> None:
    number = min(len(left), len(right))
    left, right = left[:number], right[:number]
    a, b = (sketches(shingle_hashes(side, Shingles())) for side in (left, right))
    expected = [plain_jaccard(one, two, Shingles()) for one, two in zip(left, right, strict=True)]
    assert jaccard(a, b) == pytest.approx(expected)


def test_similarity_of_long_documents_is_close() -> None:
    rng = np.random.default_rng(3)
    left, right = [], []
    for index in range(60):
        text = rng.integers(0xAC00, 0xD7A3, int(rng.integers(300, 20_000)))
        other = text.copy()
        other[rng.random(text.size) < index / 300] = 0x41
        left.append("".join(map(chr, text.tolist())) + "되풀이" * (index % 7) * 900)
        right.append("".join(map(chr, other.tolist())) + "되풀이" * (index % 5) * 900)
    a, b = (sketches(shingle_hashes(side, Shingles())) for side in (left, right))
    assert a.lengths.max() == SKETCH and all((np.diff(a[row].astype(np.int64)) > 0).all() for row in range(60))
    true = np.array([plain_jaccard(one, two, Shingles()) for one, two in zip(left, right, strict=True)])
    assert np.abs(jaccard(a, b) - true).max() < 5 * 0.5 / np.sqrt(SKETCH)
    assert abs((jaccard(a, b) - true).mean()) < 0.01


def test_a_page_of_one_repeated_phrase_is_sketched_in_full() -> None:
    text = "같은 말을 " * 5000
    sketch = sketches(shingle_hashes(["짧다", text, "끝"], Shingles()))
    assert sketch.lengths.tolist() == [1, 6, 1]


def test_normalisation_composes_and_never_takes_apart() -> None:
    decomposed = unicodedata.normalize("NFD", "한글  Text")
    default = Normalisation()
    assert default(decomposed) == "한글 Text" == default(" 한글\n\tText ")
    assert default("ㅋㅋ①㈜") == "ㅋㅋ①㈜"
    assert parse_normalisation(["none"])(decomposed) == decomposed
    assert parse_normalisation(["nfc", "case", "space", "punctuation"])("A_b, 가-나!") == "a b 가 나"
    assert str(parse_normalisation(["space", "nfc"])) == "nfc,space"
    with pytest.raises(DataError, match="unknown step"):
        parse_normalisation(["nfkc"])


@pytest.mark.parametrize("text", ["char", "char:0", "char:x", "jamo:3", "word:-1", ""])
def test_unknown_shingles_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="shingles"):
        parse_shingles(text)


@given(st.floats(0.02, 1.0))
def test_derived_bands_find_nine_of_ten_at_the_threshold(threshold: float) -> None:
    bands = bands_for(threshold)
    assert bands.hashes <= 256
    assert bands.candidate_probability(threshold) >= 0.9


def test_bands_are_checked() -> None:
    assert check_bands(14, 8, 0.75) == Bands(14, 8)
    assert check_bands(None, None, 0.45) == bands_for(0.45)
    for bands, rows in ((14, None), (None, 8), (0, 8), (1000, 100)):
        with pytest.raises(DataError, match="go together"):
            check_bands(bands, rows, 0.5)
    for threshold in (0.0, 1.5, -1.0):
        with pytest.raises(DataError, match="threshold"):
            bands_for(threshold)
