"""Deduplication against an existing corpus: that counts as seen, all of it stays, and none of it is written again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_dedup_kill import Stop
from test_dedup_run import everything, kept_of, lines_of, mixed, write

from megatron_ko.data.dedup.dedup import dedup
from megatron_ko.data.dedup.lsh import Bands
from megatron_ko.data.dedup.options import DedupOptions, InputFiles, Near, Resources
from megatron_ko.data.dedup.shingles import Shingles
from megatron_ko.errors import DataError

Korean = Callable[..., list[str]]
LEVELS = ("document", "paragraph", "line")


def options_of(folder: Path, korean: Korean, keep: str = "first", levels: tuple[str, ...] = LEVELS) -> DedupOptions:
    """An existing corpus that is clean, and two new sources, each of which repeats it, the other one, and itself."""
    one, two = mixed(korean)
    raw = write(folder / "raw.jsonl", one)
    options = DedupOptions(InputFiles((raw,)), folder / "clean", levels, Near(), keep=keep)
    dedup(options)
    old = folder / "clean/raw.jsonl.zst"
    new = (write(folder / "two.jsonl", two), write(folder / "three.jsonl", [*korean(40, 77), *two[5:30], *one[50:60]]))
    return replace(options, input=InputFiles((old, *new), existing=1), output=folder / "against")


@pytest.mark.parametrize("levels", [("document",), LEVELS])
def test_it_is_deduplication_of_both_without_what_existed(
    tmp_path: Path, korean: Korean, levels: tuple[str, ...]
) -> None:
    options = options_of(tmp_path, korean, levels=levels)
    together = replace(options, input=InputFiles(options.input.paths), output=tmp_path / "together")
    old = options.input.paths[0].read_bytes()
    whole, result = dedup(together), dedup(options)
    assert [entry.name for entry in sorted(options.output.iterdir())] == [
        "manifest.json", "removed.jsonl.zst", "report.json", "three.jsonl.zst", "two.jsonl.zst",
    ]  # fmt: skip
    for name in ("two", "three"):
        assert kept_of(options.output, name) == kept_of(together.output, name) != []
    assert lines_of(options.output / "removed.jsonl.zst") == lines_of(together.output / "removed.jsonl.zst")
    # Existing documents are not compared with each other.
    assert result.report["near"].pop("compared_pairs") < whole.report["near"].pop("compared_pairs")
    assert result.report == whole.report
    counts, held = result.manifest["documents"], whole.manifest["documents"]
    existing = result.manifest["against"]["inputs"][0]["documents"]
    assert (counts["in"], counts["out"]) == (held["in"] - existing, held["out"] - existing)
    assert counts["removed"] == held["removed"]
    gone = [line for line in lines_of(options.output / "removed.jsonl.zst") if "raw" in line["kept_source"]]
    by_reason = {reason: sum(line["reason"] == reason for line in gone) for reason in ("exact", "near")}
    assert result.manifest["against"]["removed"] == by_reason and min(by_reason.values()) > 5
    assert options.input.paths[0].read_bytes() == old


@pytest.mark.parametrize("keep", ["first", "longest", "priority"])
def test_an_existing_corpus_with_duplicates_of_its_own_stays_whole(tmp_path: Path, korean: Korean, keep: str) -> None:
    """All that is like any of it goes, also what is like a document that deduplication would have removed from it."""
    texts = [text for text in korean(200, 8) if 40 < len(text) < 200]
    one, two, three = (" ".join(texts[start : start + 10]) for start in (0, 3, 6))
    old = write(tmp_path / "old.jsonl", [one, two, two + " "])
    new = write(tmp_path / "new.jsonl", [three, three + " 더 긴 글은 더 좋은 글", " ".join(texts[60:70]), two + " 끝"])
    near = Near(Shingles(), 0.45, Bands(256, 1))
    options = DedupOptions(InputFiles((old, new), existing=1), tmp_path / "out", near=near, keep=keep)
    result = dedup(options)
    assert [place for place, _ in kept_of(tmp_path / "out", "new")] == [2]
    assert result.manifest["against"]["removed"] == {"exact": 0, "near": 3}
    gone = lines_of(tmp_path / "out/removed.jsonl.zst")
    assert {(line["source"], line["kept_source"]) for line in gone} == {(str(new), str(old))}
    assert {line["kept_position"] for line in gone if line["position"] < 3} <= {2, 3}
    shown = [one for cluster in result.report["clusters"]["largest"] for one in cluster["documents"]]
    assert shown[0]["source"] == str(old) and shown[0]["text"] == two[:160]


def test_paragraphs_that_exist_go_from_new_documents_only(tmp_path: Path) -> None:
    notice = "이 글은 어느 쪽에나 붙는 안내문이며 서른 글자보다 조금 더 깁니다."
    old = write(tmp_path / "old.jsonl", [f"하나\n\n{notice}\n\n둘", f"{notice}\n\n{notice}"])
    new = write(tmp_path / "new.jsonl", [f"셋\n\n{notice}"])
    for levels in (("paragraph",), ("paragraph", "line")):
        output = tmp_path / "-".join(levels)
        manifest = dedup(DedupOptions(InputFiles((old, new), existing=1), output, levels)).manifest
        assert kept_of(output, "new") == [(0, "셋")]
        assert manifest["pieces_removed"]["paragraph"] == 1 and manifest["documents"]["in"] == 1


def test_it_can_be_interrupted_and_spread(tmp_path: Path, korean: Korean, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(options_of(tmp_path, korean, "longest"), resources=Resources(1, memory=20_000))
    dedup(options)
    stop = Stop()
    again = replace(options, output=tmp_path / "again")
    for _ in range(11):
        with pytest.raises(KeyboardInterrupt):
            dedup(again, stop)
    with pytest.raises(DataError, match="other options or inputs") as caught:
        dedup(replace(again, input=replace(options.input, existing=0)))
    assert "against" in str(caught.value)
    dedup(again, stop)
    assert everything(tmp_path / "again") == everything(options.output)
    monkeypatch.setattr("megatron_ko.data.dedup.work_folder._SMALL", 0)
    dedup(replace(options, output=tmp_path / "spread", resources=Resources(2, memory=40_000)))
    assert everything(tmp_path / "spread") == everything(options.output)


def test_the_existing_corpus_has_its_own_format(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", ["가나다"])
    new = tmp_path / "new"
    new.write_text("가나다\n라마바\n", encoding="utf-8")
    files = InputFiles((old, new), format="txt", existing=1)  # type: ignore[arg-type]
    dedup(DedupOptions(files, tmp_path / "out", suffix=".jsonl"))
    assert [json.loads(line) for line in (tmp_path / "out/new.jsonl").open()] == [{"text": "라마바"}]


def test_nothing_new_is_refused(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old.jsonl", ["가나다"]), tmp_path / "new.txt"
    new.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="corpus is empty"):
        dedup(DedupOptions(InputFiles((old, new), existing=1), tmp_path / "out"))
    (tmp_path / "copy.jsonl").write_bytes(old.read_bytes())
    with pytest.raises(DataError, match="given twice"):
        dedup(DedupOptions(InputFiles((old, tmp_path / "copy.jsonl"), existing=1), tmp_path / "out"))
