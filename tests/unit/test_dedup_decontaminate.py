"""Documents that share text with evaluation items are found, named, and removed; others are not touched."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_dedup_run import everything, kept_of, lines_of, write

from megatron_ko.data.dedup.decontaminate import DecontaminateOptions, decontaminate
from megatron_ko.data.dedup.evaluation import NgramRule, build_index, read_items
from megatron_ko.data.dedup.options import InputFiles, Resources
from megatron_ko.errors import DataError

WORDS = st.lists(st.sampled_from(["가", "나", "다라", "X", "b,"]), max_size=25).map(" ".join)


def plain_matches(text: str, item: str, grams: NgramRule) -> bool:
    """Whether they share an n-gram, or the whole item where it is short."""

    def units(words: str) -> list[str]:
        prepared = grams.prepared(words)
        return prepared.split() if grams.unit == "eojeol" else list(prepared)

    document, wanted = units(text), units(item)
    size = min(grams.size, len(wanted))
    if size < grams.shortest:
        return False
    pieces = {tuple(wanted[start : start + size]) for start in range(len(wanted) - size + 1)}
    return any(tuple(document[start : start + size]) in pieces for start in range(len(document) - size + 1))


@given(st.lists(WORDS, max_size=6), st.lists(WORDS, min_size=1, max_size=6), st.sampled_from(["eojeol", "char"]))
def test_matches_are_those_of_plain_python(texts: list[str], items: list[str], unit: str) -> None:
    grams = NgramRule(unit, 5, 3)  # type: ignore[arg-type]
    listed = [("eval", place, "text", text) for place, text in enumerate([*items, "충분히 긴 문항 하나 더 있다"])]
    index, described = build_index(listed, grams)
    prepared = [grams.prepared(text) for text in texts]
    found = {(match.row, match.item) for match in index.find(prepared)}
    expected = {
        (row, number)
        for row, text in enumerate(texts)
        for number, item in enumerate([*items, "충분히 긴 문항 하나 더 있다"])
        if plain_matches(text, item, grams)
    }
    assert found == expected
    for match in index.find(prepared):
        shared = prepared[match.row][match.begin : match.end]
        assert plain_matches(shared, listed[match.item][3], grams)
        assert 0 <= match.gram < index.heads.size and described[match.item].grams


def evaluation(folder: Path) -> Path:
    path = folder / "eval.jsonl"
    items = [
        {"question": "조선의 네 번째 임금으로서 훈민정음을 만들고 측우기를 쓰게 한 왕은 누구이며 언제 났는가?"},
        {"question": "빛의 속도는 얼마인가?", "choices": ["초속 삼십만 킬로미터쯤 된다고 알려져 있다", "모른다"]},
        {"question": "물은 섭씨 몇 도에서 끓기 시작하는가 말해 보시오", "choices": []},
    ]
    path.write_text("\n".join(json.dumps(item, ensure_ascii=False) for item in items), encoding="utf-8")
    return path


TEXTS = [
    "관계없는 문서입니다. 빛의 속도는 얼마인가?",
    "어느 시험에서: 조선의 네 번째 임금으로서, 훈민정음을 만들고 — 측우기를 쓰게 한 왕은 누구이며 언제 났는가? 답",
    "조선의 네 번째 임금으로서 훈민정음을 만들고",
    "그는 초속 삼십만 킬로미터쯤 된다고 알려져 있다 했다",
    "물은 섭씨 몇도에서 끓기 시작하는가 말해보시오!",
]


def test_what_is_shared_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    options = DecontaminateOptions(
        InputFiles((path,)),
        tmp_path / "out",
        (evaluation(tmp_path),),
        ("question", "choices"),
        NgramRule("eojeol", 10, 6),
    )
    manifest = decontaminate(options)
    assert kept_of(tmp_path / "out", "a") == [(place, TEXTS[place]) for place in (0, 2, 4)]
    assert manifest["documents"] == {"in": 5, "out": 3, "removed": {"contaminated": 2}}
    first, second = lines_of(tmp_path / "out/removed.jsonl.zst")
    assert (first["position"], first["matches"][0]["position"], first["matches"][0]["field"]) == (2, 1, "question")
    assert first["matches"][0]["shared_ngrams"] == first["matches"][0]["of"] > 1
    assert second["matches"][0]["field"] == "choices" and "초속 삼십만" in second["matches"][0]["text"]
    assert manifest["evaluation"]["files"][0] == {
        "file": str(options.against[0]), "items": 5, "too_short": 2, "found": 2
    }  # fmt: skip


def test_characters_do_not_mind_the_spacing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    options = DecontaminateOptions(
        InputFiles((path,)), tmp_path / "out", (evaluation(tmp_path),), ("question",), NgramRule("char", 40, 15)
    )
    decontaminate(options)
    assert [place for place, _ in kept_of(tmp_path / "out", "a")] == [0, 2, 3]


def test_no_byte_depends_on_workers(tmp_path: Path, korean: Callable[..., list[str]]) -> None:
    texts = korean(400, 3)
    path = write(tmp_path / "a.jsonl", texts)
    against = write(tmp_path / "eval.jsonl", [texts[7][:60], texts[100], texts[333]])
    options = DecontaminateOptions(InputFiles((path,)), tmp_path / "one", (against,), grams=NgramRule("eojeol", 8, 4))
    assert decontaminate(options)["documents"]["removed"]["contaminated"] >= 3
    decontaminate(replace(options, output=tmp_path / "three", resources=Resources(3)))
    assert everything(tmp_path / "one") == everything(tmp_path / "three")


def test_unusable_evaluation_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    good = DecontaminateOptions(InputFiles((path,)), tmp_path / "out", (evaluation(tmp_path),), ("question",))
    for options, message in (
        (replace(good, keys=("text",)), "cannot be read as an evaluation file"),
        (replace(good, keys=("question", "answer")), "no record of .* has a text 'answer'"),
        (replace(good, grams=NgramRule("eojeol", 50, 40)), "long enough"),
        (replace(good, grams=NgramRule("eojeol", 5, 6)), "shortest"),
        (replace(good, against=(tmp_path / "no.jsonl",)), "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            decontaminate(options)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.parts").exists()


def test_every_evaluation_file_may_have_a_field_of_its_own(tmp_path: Path) -> None:
    """BoolQ's is Text, COPA's is sentence; other files take the fields that are named without a file."""
    (tmp_path / "boolq.tsv").write_text("Text\tsentence\n긴 글\t아님\n", encoding="utf-8")
    (tmp_path / "copa.tsv").write_text("sentence\n짧은 글\n", encoding="utf-8")
    paths = [tmp_path / "boolq.tsv", tmp_path / "copa.tsv"]
    texts = [text for *_, text in read_items(paths, ["boolq.tsv:Text", "sentence"])]
    assert texts == ["긴 글", "짧은 글"]
    with pytest.raises(DataError, match=r"no field of .*copa.tsv was named") as caught:
        read_items(paths, ["boolq.tsv:Text"])
    assert "--against-key copa.tsv:FIELD" in str(caught.value)
