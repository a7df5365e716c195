"""Deduplication from files to files: against plain Python, conserved, and the same however it is run."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_dedup_shingles import plain_jaccard

from megatron_ko.data.dedup.dedup import dedup
from megatron_ko.data.dedup.lsh import Bands
from megatron_ko.data.dedup.normalise import Normalisation
from megatron_ko.data.dedup.options import DedupOptions, InputFiles, Near, Resources
from megatron_ko.data.dedup.settle import settle
from megatron_ko.data.dedup.shingles import Shingles
from megatron_ko.data.text.documents import Document, read_documents
from megatron_ko.errors import DataError

Korean = Callable[..., list[str]]


def write(path: Path, texts: Sequence[str]) -> Path:
    lines = (json.dumps({"id": index, "text": text}, ensure_ascii=False) for index, text in enumerate(texts))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as stream:
        content = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read()
    return [json.loads(line) for line in content.splitlines()]


def kept_of(output: Path, name: str) -> list[tuple[int, str]]:
    return [(line["id"], line["text"]) for line in lines_of(output / f"{name}.jsonl.zst")]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mixed(korean: Korean, number: int = 120) -> tuple[list[str], list[str]]:
    """Two sources with copies within and across, near copies, and pieces in common."""
    texts = korean(number, 5)
    near = [text.replace("가", "카", 1) + " 덧붙인 말" for text in korean(number, 5)[::3] if len(text) > 150]
    shared = "\n\n이 문단은 여러 문서에 똑같이 들어 있는 제법 긴 안내 문구입니다. 참고하세요.\n\n"
    second = [*texts[::4], *near, *(text + shared + "끝" for text in korean(20, 9)), " ".join(texts[3].split(" "))]
    return [*texts, texts[1], f"  {texts[2]} \n"], second


def test_exact_copies_go_wherever_they_stand(tmp_path: Path) -> None:
    """The first stays; white space and decomposed Hangul make no difference; what stays is not touched."""
    odd = "각각 \n 다른\t글 "
    one = write(tmp_path / "one.jsonl", ["가나다", odd, "가나다"])
    two = write(tmp_path / "two.jsonl", ["라마바", " 가나다  ", "각각 다른 글", "각각 다른 글!"])
    result = dedup(DedupOptions(InputFiles((one, two)), tmp_path / "out"))
    assert kept_of(tmp_path / "out", "one") == [(0, "가나다"), (1, odd)]
    assert kept_of(tmp_path / "out", "two") == [(0, "라마바"), (3, "각각 다른 글!")]
    assert result.manifest["documents"] == {"in": 7, "out": 4, "removed": {"exact": 3, "nothing_left": 0}}
    gone = lines_of(tmp_path / "out/removed.jsonl.zst")
    found = [(line["source"], line["position"], line["kept_source"], line["kept_position"]) for line in gone]
    assert found == [(str(one), 3, str(one), 1), (str(two), 2, str(one), 1), (str(two), 3, str(one), 2)]
    assert {line["reason"] for line in gone} == {"exact"}
    assert not (tmp_path / "out.parts").exists()


@pytest.mark.parametrize(("keep", "expected"), [("first", (0, 0)), ("longest", (1, 2)), ("priority", (0, 1))])
def test_the_policy_decides_who_stays(tmp_path: Path, korean: Korean, keep: str, expected: tuple[int, int]) -> None:
    base = " ".join(korean(6, 3))
    one = write(tmp_path / "one.jsonl", [base, base + " 조금 더"])
    two = write(tmp_path / "two.jsonl", ["전혀 다른 글", base + " 조", base + " 조금 더 길고 길게", base])
    options = DedupOptions(InputFiles((one, two)), tmp_path / "out", near=Near(), keep=keep)
    result = dedup(options)
    stays = [(0, place) for place, _ in kept_of(tmp_path / "out", "one")]
    stays += [(1, place) for place, _ in kept_of(tmp_path / "out", "two")]
    assert sorted(stays) == sorted([(1, 0), expected])
    assert result.manifest["documents"]["out"] == 2
    assert result.report["clusters"]["sizes"] == {"4-7": 1}


def brute_force(texts: Sequence[str], shingles: Shingles, threshold: float) -> list[int]:
    """Numbers of the documents that stay: in order, what is similar to nothing that stayed before."""
    stays: list[int] = []
    for number, text in enumerate(texts):
        compared = (plain_jaccard(" ".join(text.split()), " ".join(texts[other].split()), shingles) for other in stays)
        if max(compared, default=0.0) < threshold:
            stays.append(number)
    return stays


@pytest.mark.parametrize("kind", ["char", "word"])
def test_near_duplicates_are_those_that_brute_force_finds(tmp_path: Path, korean: Korean, kind: str) -> None:
    """With bands that miss nothing, and documents short enough for exact similarity."""
    words = [text.split() for text in korean(60, 11)]
    draw = np.random.default_rng(0)
    texts = []
    for index in range(150):
        chosen = list(words[index % 60])
        for place in range(len(chosen)):
            if draw.random() < 0.03 * (index // 30):
                chosen[place] = words[int(draw.integers(60))][0]
        texts.append(" ".join(chosen))
    shingles = Shingles(kind, 5 if kind == "char" else 2)
    near = Near(shingles, 0.5, Bands(256, 1))
    dedup(DedupOptions(InputFiles((write(tmp_path / "a.jsonl", texts),)), tmp_path / "out", near=near))
    expected = brute_force(texts, shingles, 0.5)
    assert 60 <= len(expected) < 140
    assert [place for place, _ in kept_of(tmp_path / "out", "a")] == expected
    for line in lines_of(tmp_path / "out/removed.jsonl.zst"):
        pair = (texts[line["position"] - 1], texts[line["kept_position"] - 1])
        assert line["reason"] == "exact" or line["similarity"] == pytest.approx(
            plain_jaccard(*pair, shingles), abs=0.001
        )


@given(st.integers(2, 14), st.data())
def test_what_goes_is_similar_to_what_stays_for_it(size: int, data: st.DataObject) -> None:
    """Of a random graph: with all pairs known it is the greedy choice by rank; with some, only fewer documents go."""
    pairs = list(itertools.combinations(range(size), 2))
    alike = set(data.draw(st.lists(st.sampled_from(pairs), unique=True)))
    known = sorted(data.draw(st.lists(st.sampled_from(sorted(alike)), unique=True)) if alike else [])

    def similar(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.array([pair in alike for pair in zip(one.tolist(), two.tolist(), strict=True)], bool)

    def settled(edges: Sequence[tuple[int, int]]) -> list[int]:
        array = np.array(edges, np.int64).reshape(-1, 2)
        return settle(size, array[:, 0], array[:, 1], similar).tolist()

    greedy: list[int] = []
    for number in range(size):
        if not any((other, number) in alike for other in greedy):
            greedy.append(number)
    assert [number for number, leader in enumerate(settled(sorted(alike))) if number == leader] == greedy
    for number, leader in enumerate(settled(known)):
        assert number == leader or (leader, number) in alike
        assert settled(known)[leader] == leader


def test_a_large_family_is_reduced_to_one(tmp_path: Path, korean: Korean) -> None:
    """More members than a bucket compares with each other: they find the one that stays through their neighbours."""
    page = korean(12, 4)
    texts = [" ".join([*page, f"번호 {number}"]) for number in range(400)]
    result = dedup(DedupOptions(InputFiles((write(tmp_path / "a.jsonl", texts),)), tmp_path / "out", near=Near()))
    assert [place for place, _ in kept_of(tmp_path / "out", "a")] == [0]
    assert result.report["near"]["documents_in_crowded_buckets"] > 0
    assert result.report["clusters"]["sizes"] == {"256-511": 1}
    for look in ("largest", "most_varied"):
        (cluster,) = result.report["clusters"][look]
        assert cluster["size"] == 400
        assert [document["position"] for document in cluster["documents"]] == [1, 2, 3]
        assert cluster["documents"][1]["text"] == texts[1][:160]


def test_no_chain_removes_what_is_unlike(tmp_path: Path, korean: Korean) -> None:
    """Each text shares most of its sentences with the next one, and nothing with those far away."""
    sentences = [text for text in korean(200, 8) if 40 < len(text) < 200]
    texts = [" ".join(sentences[start : start + 10]) for start in range(0, 60, 2)]
    near = Near()
    dedup(DedupOptions(InputFiles((write(tmp_path / "a.jsonl", texts),)), tmp_path / "out", near=near))
    stays = [place for place, _ in kept_of(tmp_path / "out", "a")]
    assert 10 <= len(stays) < 30
    for line in lines_of(tmp_path / "out/removed.jsonl.zst"):
        pair = (texts[line["position"] - 1], texts[line["kept_position"] - 1])
        assert plain_jaccard(*pair, near.shingles) > near.threshold - 0.1


def full_options(folder: Path, korean: Korean) -> DedupOptions:
    one, two = mixed(korean)
    files = (write(folder / "one.jsonl", one), write(folder / "two.jsonl", two))
    levels = ("document", "paragraph", "line")
    return DedupOptions(InputFiles(files), folder / "plain", levels, Near(), keep="longest")


def test_no_byte_depends_on_workers_or_memory(tmp_path: Path, korean: Korean, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many ranges of keys and of documents instead of one, three processes instead of none."""
    monkeypatch.setattr("megatron_ko.data.dedup.work_folder._SMALL", 0)
    options = full_options(tmp_path, korean)
    manifest = dedup(options).manifest
    assert manifest["documents"]["removed"]["exact"] > 20 and manifest["documents"]["removed"]["near"] > 5
    assert manifest["pieces_removed"]["paragraph"] > 10
    for name, running in (("spilled", Resources(1, memory=2000)), ("spread", Resources(3, memory=40_000))):
        dedup(replace(options, output=tmp_path / name, resources=running))
        assert everything(tmp_path / name) == everything(tmp_path / "plain")


TEXTS = st.lists(
    st.lists(st.sampled_from(["가나다라마 ", "바사아자차", "\n", "\n\n", " \n\n", "카타파하 "]), min_size=1).map(
        "".join
    ),
    min_size=1,
    max_size=15,
)


@given(TEXTS, st.sampled_from(["first", "longest", "priority"]), st.booleans(), st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_and_bytes_are_conserved(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], keep: str, near: bool, data: st.DataObject
) -> None:
    texts = [text if text.strip() else text + "끝" for text in texts]
    folder = tmp_path_factory.mktemp("conserved")
    border = data.draw(st.integers(0, len(texts)))
    assume(texts[:border] != texts[border:])  # the same file twice is refused
    files = (write(folder / "a.jsonl", texts[:border]), write(folder / "b.jsonl", texts[border:]))
    levels = data.draw(st.sets(st.sampled_from(["document", "paragraph", "line"]), min_size=1))
    options = DedupOptions(
        InputFiles(files), folder / "out", tuple(levels), Near() if near else None, keep=keep, least_characters=3
    )
    manifest = dedup(options).manifest
    counts, sizes = manifest["documents"], manifest["bytes_of_text"]
    assert counts["in"] == len(texts) == counts["out"] + sum(counts["removed"].values())
    assert sizes["in"] == sum(len(text.encode()) for text in texts) == sizes["out"] + sum(sizes["removed"].values())
    kept = kept_of(folder / "out", "a") + kept_of(folder / "out", "b")
    assert len(kept) == counts["out"] and sum(len(text.encode()) for _, text in kept) == sizes["out"]
    if levels == {"document"}:
        assert all(text in texts for _, text in kept)
        assert {" ".join(text.split()) for _, text in kept} <= {" ".join(text.split()) for text in texts}
        if not near:
            assert len({" ".join(text.split()) for text in texts}) == counts["out"]


def test_paragraphs_and_lines_stay_once(tmp_path: Path) -> None:
    notice = "이 글은 어느 쪽에나 붙는 안내문이며 서른 글자보다 조금 더 깁니다."
    texts = [
        f"첫 문단\n\n{notice}\n\n끝",
        f"{notice}\n \n\n둘째 글의 본문",
        notice,
        f"들여쓰기\n    {notice}\n짧다\n짧다\n\n{notice}",
    ]
    path = write(tmp_path / "a.jsonl", texts)
    options = DedupOptions(InputFiles((path,)), tmp_path / "p", ("paragraph",))
    manifest = dedup(options).manifest
    assert kept_of(tmp_path / "p", "a") == [
        (0, texts[0]),
        (1, "둘째 글의 본문"),
        (3, f"들여쓰기\n    {notice}\n짧다\n짧다"),
    ]
    assert manifest["documents"] == {"in": 4, "out": 3, "removed": {"nothing_left": 1}}
    assert manifest["pieces_removed"] == {"paragraph": 3}
    dedup(replace(options, output=tmp_path / "l", levels=("line",)))
    assert kept_of(tmp_path / "l", "a")[-1] == (3, "들여쓰기\n짧다\n짧다\n")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_format_holds_the_same_documents(tmp_path: Path, suffix: str) -> None:
    texts = ["가나다", "가나다", "라마바", "사아자"]
    table = write(tmp_path / "a.b.jsonl", texts)
    (tmp_path / "other").mkdir()
    again = write(tmp_path / "other/a.b.jsonl", ["라마바", "차카타"])
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    dedup(DedupOptions(InputFiles((table, again, empty)), tmp_path / "out", suffix=suffix))
    mine = f"{tmp_path.name}-a.b"  # two files of one name are told apart by their folders
    for name, expected in ((mine, [(0, "가나다"), (2, "라마바"), (3, "사아자")]), ("other-a.b", [(1, "차카타")])):
        documents = list(read_documents(tmp_path / f"out/{name}{suffix}", keep_fields=True))
        assert all(isinstance(document, Document) for document in documents)
        assert [(document.fields["id"], document.text) for document in documents] == expected  # type: ignore[union-attr]
    assert (tmp_path / f"out/empty{suffix}").exists()


def test_rejected_records_are_counted_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "가"}\n{"text": \n{"text": ""}\n{"no": 1}\n{"text": "가"}\n'.encode())
    manifest = dedup(DedupOptions(InputFiles((path,)), tmp_path / "out")).manifest
    assert manifest["rejected"]["records"] == 3 and manifest["documents"]["in"] == 2
    listed = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [record["position"] for record in listed] == [2, 3, 4]


def test_mistakes_are_refused_before_any_work(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["가"])
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())
    good = DedupOptions(InputFiles((path,)), tmp_path / "out")
    for options, message in (
        (replace(good, input=InputFiles((path, tmp_path / "copy.jsonl"))), "given twice"),
        (replace(good, input=InputFiles((path, path))), "given twice"),
        (replace(good, input=InputFiles((Path("-"),))), "several times"),
        (replace(good, input=InputFiles((tmp_path / "no.jsonl",))), "no such file"),
        (replace(good, output=tmp_path), "exists already"),
        (replace(good, levels=("word",)), "unknown level"),
        (replace(good, levels=()), "nothing to look for"),
        (replace(good, keep="last"), "unknown policy"),
        (replace(good, suffix=".csv"), "unknown kind of output"),
    ):
        with pytest.raises(DataError, match=message):
            dedup(options)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "copy.jsonl"]


def test_an_empty_corpus_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(DataError, match="corpus is empty"):
        dedup(DedupOptions(InputFiles((tmp_path / "a.txt",)), tmp_path / "out", near=Near()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_texts_of_which_normalisation_leaves_nothing_are_compared_as_they_are(tmp_path: Path) -> None:
    texts = ["...", "!?", "...", "A-가", "a 가"]
    options = DedupOptions(
        InputFiles((write(tmp_path / "a.jsonl", texts),)),
        tmp_path / "out",
        near=Near(Shingles("word", 2)),
        normalisation=Normalisation(frozenset({"case", "punctuation", "space"})),
    )
    dedup(options)
    assert [place for place, _ in kept_of(tmp_path / "out", "a")] == [0, 1, 3]
