"""Eojeol instead of Kiwi morphemes: how often the FineWeb-2 rules then decide the same, and at what speed.

python benchmarks/clean_words.py FOLDER      (with kobest/boolq_*.tsv and tech_docs_ko.jsonl.gz)
"""

import gzip
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

from megatron_ko.data.clean.config import CleanConfig, load_clean_config
from megatron_ko.data.clean.pipeline import Pipeline
from megatron_ko.data.clean.words import splitter
from megatron_ko.data.text.documents import Document

CONFIGS = Path(__file__).parents[1] / "configs/clean"
RULES = ("gopher_repetition", "fineweb", "gopher")
LONGEST = 20_000
WORDS: tuple[Literal["kiwi", "eojeol"], ...] = ("kiwi", "eojeol")


def main() -> None:
    texts = documents(Path(sys.argv[1]))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    number = {words: sum(len(splitter(words)(text)) for text in texts) for words in WORDS}
    print(f"{len(texts)} documents, {megabytes:.2f} MB, {number['kiwi'] / number['eojeol']:.2f} morphemes an eojeol\n")
    fineweb2 = load_clean_config(CONFIGS / "fineweb2-kor.yaml")
    rows = {
        "fineweb2-kor, words: kiwi": fineweb2,
        "fineweb2-kor, words: eojeol": replace(fineweb2, words="eojeol"),
        "  and stop_words_as: endings": endings(replace(fineweb2, words="eojeol")),
        "korean-web": load_clean_config(CONFIGS / "korean-web.yaml"),
    }
    print(f"{'rules':30} {'kept':>7} {'as with kiwi':>13} {'MB/s':>7}   dropped most often")
    expected: list[str] = []
    for name, config in rows.items():
        start = time.process_time()
        found = decisions(config, texts)
        seconds = time.process_time() - start
        expected = expected or found
        same = sum((a == "kept") == (b == "kept") for a, b in zip(found, expected, strict=True)) / len(texts)
        counts = Counter(reason for reason in found if reason != "kept")
        most = ", ".join(f"{reason} {count}" for reason, count in counts.most_common(3))
        print(f"{name:30} {found.count('kept') / len(texts):7.1%} {same:13.1%} {megabytes / seconds:7.2f}   {most}")


def documents(folder: Path) -> list[str]:
    """Passages of KoBEST BoolQ, and pages of a manual that are not too long for Kiwi's speed."""
    with gzip.open(folder / "tech_docs_ko.jsonl.gz", "rt", encoding="utf-8") as lines:
        pages = [text for line in list(lines)[::4] if len(text := json.loads(line)["text"]) < LONGEST][:60]
    passages = []
    for path in sorted((folder / "kobest").glob("boolq_*.tsv")):
        passages += [max(line.split("\t"), key=len) for line in path.read_text(encoding="utf-8").splitlines()[1::12]]
    return pages + passages


def endings(config: CleanConfig) -> CleanConfig:
    """The same pipeline, in which stop words also count as the ends of words."""
    stages = tuple(
        replace(stage, options=stage.options.model_copy(update={"stop_words_as": "endings"}))
        if stage.kind == "gopher"
        else stage
        for stage in config.stages
    )
    return replace(config, stages=stages)


def decisions(config: CleanConfig, texts: list[str]) -> list[str]:
    """The reason against every text, or "kept", by the published rules of the pipeline alone."""
    pipeline = Pipeline(replace(config, stages=tuple(stage for stage in config.stages if stage.kind in RULES)))
    found = []
    for text in texts:
        tally = pipeline.tally()
        kept = pipeline.clean(Document(text, "", 0), tally)
        reasons = [reason for stage in tally.stages.values() for reason in stage.dropped]
        found.append("kept" if kept else reasons[0])
    return found


if __name__ == "__main__":
    main()
