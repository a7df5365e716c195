"""`data clean` against datatrove: the same filters with the same thresholds, and whole pipelines on two workers.

    python benchmarks/clean.py FOLDER       (of the corpora tech_docs_ko and nsmc_reviews, .jsonl.gz)

Filters: one process, texts in memory, the same words (eojeol) on both sides, turns of both taken alternately, CPU time
of the best turn. Pipelines: the verb, from compressed files to compressed shards, wall clock, and the largest sum of
resident memory of all its processes.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import psutil
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import split_into_parts
from datatrove.utils.word_tokenizers import WordTokenizer

from megatron_ko.data.clean.c4 import C4, C4Options
from megatron_ko.data.clean.fineweb import FinewebOptions, fineweb
from megatron_ko.data.clean.gopher import GopherOptions, gopher
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.repetition import RepetitionOptions, repetition
from megatron_ko.data.clean.stage import Dropped, Stage
from megatron_ko.data.clean.words import sentences

ROOT = Path(__file__).parents[1]
SHORT_TEXTS, TURNS = 60_000, 3


class Eojeol(WordTokenizer):
    """Our splitters in datatrove's shape."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return sentences(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, 0)] * len(sentences(text))


def main() -> None:
    folder = Path(sys.argv[1])
    words = Eojeol()
    pairs: list[tuple[str, Stage, Callable[[Document], object]]] = [
        ("repetition", repetition(RepetitionOptions()), GopherRepetitionFilter(language=words).filter),
        ("gopher", gopher(GopherOptions(min_words=1)), GopherQualityFilter(language=words, min_doc_words=1).filter),
        ("fineweb", fineweb(FinewebOptions()), FineWebQualityFilter(language=words).filter),
        ("c4", C4(C4Options()), C4QualityFilter(language=words).filter),
    ]
    print(f"{'filter':12} {'texts':>14} {'ours MB/s':>10} {'datatrove MB/s':>15} {'ratio':>6} {'same decisions':>16}")
    for name, number in (("tech_docs_ko", None), ("nsmc_reviews", SHORT_TEXTS)):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts = [text for line in islice(lines, number) if (text := json.loads(line)["text"]).strip()]
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        for label, stage, oracle in pairs:
            ours, theirs, same = compare(stage, oracle, texts)
            print(
                f"{label:12} {name:>14} {megabytes / ours:10.1f} {megabytes / theirs:15.1f} {theirs / ours:6.1f} "
                f"{same:>8,} of {len(texts):,}"
            )
    print(f"\n{'pipeline, 2 workers':22} {'input':>22} {'MB/s of text':>13} {'peak MiB':>9} {'kept':>7}")
    for preset in ("korean-web", "korean-webtext"):
        for name, copies in (("tech_docs_ko", 1), ("nsmc_reviews", 1), ("nsmc_reviews", 3)):
            print(f"{preset:22} {f'{copies} x {name}':>22} {verb(folder, preset, name, copies)}", flush=True)


def compare(stage: Stage, oracle: Callable[[Document], object], texts: list[str]) -> tuple[float, float, int]:
    """Seconds of CPU of both sides, best of some turns, and on how many texts they decide alike."""
    best = {"ours": float("inf"), "theirs": float("inf")}
    found: dict[str, list[bool]] = {}
    for _ in range(TURNS):
        start = time.process_time()
        found["ours"] = [not isinstance(stage(Page(text)), Dropped) for text in texts]
        best["ours"] = min(best["ours"], time.process_time() - start)
        split_into_parts.cache_clear()
        documents = [Document(text=text, id="") for text in texts]
        start = time.process_time()
        found["theirs"] = [oracle(document) is True for document in documents]
        best["theirs"] = min(best["theirs"], time.process_time() - start)
    return best["ours"], best["theirs"], sum(a == b for a, b in zip(found["ours"], found["theirs"], strict=True))


def verb(folder: Path, preset: str, name: str, copies: int) -> str:
    """One run of the verb over ``copies`` times the text; copies differ in a field, or the verb would refuse them."""
    with tempfile.TemporaryDirectory() as place:
        files = [folder / f"{name}.jsonl.gz"]
        for copy in range(1, copies):
            files.append(Path(place) / f"{copy}.jsonl.gz")
            with gzip.open(files[0], "rb") as source, gzip.open(files[-1], "wb", compresslevel=1) as target:
                target.writelines(line.replace(b"{", b'{"copy": %d, ' % copy, 1) for line in source)
        inputs = [word for path in files for word in ("--input", str(path))]
        config = str(ROOT / f"configs/clean/{preset}.yaml")
        options = ["--output", f"{place}/out", "--config", config, "--workers", "2", "--json"]
        command = [sys.executable, "-m", "megatron_ko.cli.main", "data", "clean", *inputs, *options]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak, stdout = watch(run)
        report = json.loads(stdout)
        speed = report["in"]["bytes"] / report["seconds"] / 1e6
        return f"{speed:13.1f} {peak >> 20:9,} {report['kept']['documents']:7.1%}"


def watch(run: "subprocess.Popen[str]") -> tuple[int, str]:
    """The largest sum of resident memory of a process and its children, and what it printed."""
    peak, process = 0, psutil.Process(run.pid)
    while run.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.05)
    assert run.stdout is not None
    output = run.stdout.read()
    assert run.returncode == 0, output
    return peak, output


if __name__ == "__main__":
    main()
