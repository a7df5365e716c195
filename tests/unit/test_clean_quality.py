"""Stages that judge by an address, by a classifier, and by a language model; the models are real ones."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_ko.data.clean.calibration import calibrate
from megatron_ko.data.clean.clean import CleanOptions, clean
from megatron_ko.data.clean.config import load_clean_config
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.quality import PerplexityOptions, QualityOptions, perplexity, quality
from megatron_ko.data.clean.stage import Dropped, Noted
from megatron_ko.data.clean.urls import Urls, UrlsOptions
from megatron_ko.data.text.formats import OutputFormat
from megatron_ko.errors import DataError

MODEL = Path(__file__).parent / "data/two_languages.bin"
KOREAN, ENGLISH = "오늘은 날씨가 좋아서\n사람들이 공원에 나왔다.", "The corpus is read once and the tokens are written"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "domains.txt").write_text("# spam\nspam.kr\n*.ads.example.com\n한국.kr\n", encoding="utf-8")
    return tmp_path / "domains.txt"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("https://spam.kr/a", "listed_domain"),
        ("http://WWW.Spam.kr:8080", "listed_domain"),
        ("spam.kr/no/scheme", "listed_domain"),
        ("https://user@x.ads.example.com/", "listed_domain"),
        ("https://xn--3e0b707e.kr/", "listed_domain"),
        ("https://한국.kr/", "listed_domain"),
        ("https://notspam.kr/", None),
        ("https://spam.kr.example.com/", None),
        ("https://example.com/?next=spam.kr", None),
        ("https://a.kr/%EC%B9%B4%EC%A7%80%EB%85%B8", "listed_word"),
        ("https://a.kr/best-CASINO_1", "listed_word"),
        ("https://casinos.kr/", None),
        ("not an address", None),
        ("http://[broken", None),
        ("", "no_url"),
    ],
)
def test_addresses(listed: Path, address: str, reason: str | None) -> None:
    stage = Urls(UrlsOptions(domains=listed, words=("카지노", "casino")))
    assert stage(Page("글", fields={"url": address})) == (Dropped(reason) if reason else None)


def test_documents_without_an_address(listed: Path) -> None:
    for missing, verdict in (("drop", Dropped("no_url")), ("keep", None)):
        stage = Urls(UrlsOptions(domains=listed, field="link", missing=missing))  # type: ignore[arg-type]
        assert stage(Page("글", fields={"url": "https://a.kr", "link": 3})) == verdict
    with pytest.raises(DataError, match="without entries"):
        Urls(UrlsOptions())


def test_a_classifier_keeps_its_label() -> None:
    stage = quality(QualityOptions(model=MODEL, label="kor_Hang", min_score=0.9))
    kept = stage(Page(KOREAN))
    assert isinstance(kept, Noted) and 0.9 <= float(str(kept.fields["quality_score"])) <= 1
    assert stage(Page(ENGLISH)) == Dropped("low_quality")
    assert isinstance(quality(QualityOptions(model=MODEL, label="kor_Hang", min_score=0.0))(Page(ENGLISH)), Noted)
    (measure,) = stage.measures(Page(KOREAN))
    assert measure.value == pytest.approx(float(str(kept.fields["quality_score"])), abs=1e-4)
    with pytest.raises(DataError, match="has no label 'good'") as caught:
        quality(QualityOptions(model=MODEL, label="good"))
    assert "eng_Latn, kor_Hang" in str(caught.value)


def bigrams(path: Path, lines: list[str]) -> dict[tuple[str, str], float]:
    """Train a bigram model without smoothing between known pairs, and write it as an ARPA file."""
    words = [["<s>", *line.split(), "</s>"] for line in lines]
    single = Counter(word for line in words for word in line[1:])
    pairs = Counter(pair for line in words for pair in pairwise(line))
    first = Counter(pair[0] for pair in pairs.elements())
    arpa = [
        "\\data\\",
        f"ngram 1={len(single) + 2}",
        f"ngram 2={len(pairs)}",
        "",
        "\\1-grams:",
        "-5\t<unk>",
        "-99\t<s>\t-1",
    ]
    arpa += [f"{math.log10(count / single.total()):.6f}\t{word}\t-1" for word, count in single.items()]
    found = {pair: math.log10(count / first[pair[0]]) for pair, count in pairs.items()}
    arpa += ["", "\\2-grams:", *(f"{value:.6f}\t{one} {two}" for (one, two), value in found.items()), "", "\\end\\", ""]
    path.write_text("\n".join(arpa), encoding="utf-8")
    return found


def test_perplexity_is_what_counting_gives(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    lines = ["오늘은 날씨가 좋다", "오늘은 비가 온다", "내일은 날씨가 좋다"]
    found = bigrams(tmp_path / "lm.arpa", lines)
    stage = perplexity(PerplexityOptions(model=tmp_path / "lm.arpa", max=10.0))
    text = "오늘은 비가 온다\n\n내일은 날씨가 좋다"
    total = sum(found[pair] for line in text.split("\n") if line for pair in pairwise(["<s>", *line.split(), "</s>"]))
    kept = stage(Page(text))
    assert isinstance(kept, Noted)
    assert float(str(kept.fields["perplexity"])) == pytest.approx(10 ** (-total / 8), rel=1e-3)
    assert stage(Page("온다 비가 전혀 모르는 말")) == Dropped("high_perplexity")
    assert perplexity(PerplexityOptions(model=tmp_path / "lm.arpa", min=3.0))(Page(text)) == Dropped("low_perplexity")
    with pytest.raises(DataError, match="without limits"):
        perplexity(PerplexityOptions(model=tmp_path / "lm.arpa"))
    (tmp_path / "bad.arpa").write_text("no model")
    with pytest.raises(DataError, match="no KenLM model"):
        perplexity(PerplexityOptions(model=tmp_path / "bad.arpa", max=10.0))
    with pytest.raises(DataError, match="does not exist"):
        perplexity(PerplexityOptions(model=tmp_path / "absent.arpa", max=10.0))


def test_in_a_pipeline_file(tmp_path: Path, listed: Path) -> None:
    config = tmp_path / "clean.yaml"
    config.write_text(
        f"stages:\n  - urls: {{domains: {listed.name}}}\n"
        f"  - quality_classifier: {{model: {MODEL}, label: kor_Hang, min_score: 0.9}}\n",
        encoding="utf-8",
    )
    records = [
        {"text": KOREAN, "url": "https://a.kr"},
        {"text": KOREAN, "url": "https://spam.kr"},
        {"text": ENGLISH, "url": "https://a.kr"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    pipeline = load_clean_config(config)
    assert "xxh3_128" in json.dumps(pipeline.described())
    options = CleanOptions((source,), tmp_path / "out", pipeline, format=OutputFormat.jsonl)
    report = clean(options)
    assert report is not None
    assert [list(stage["dropped"]) for stage in report["stages"]] == [["listed_domain"], ["low_quality"]]
    (line,) = (tmp_path / "out/clean-00000.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["url"] == "https://a.kr" and json.loads(line)["quality_score"] > 0.9
    (measure,) = calibrate(options.reading, pipeline, 10).measures
    assert measure.reason == "low_quality" and measure.outside == pytest.approx(1 / 3, abs=0.01)
