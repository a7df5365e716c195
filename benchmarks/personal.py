"""Personal data that the stage `personal` finds: recall and precision by kind, and its speed.

python benchmarks/personal.py [REVIEWS.jsonl.gz]

The list is that of the tests, every text written by hand; the planted numbers are random, in random ways of writing.
A finding counts if it has the right kind and covers just the data. With a file of documents, one `text` a line, it is
also shown how many of them are found to hold something, and how fast they are read.
"""

import gzip
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from planted_personal import KINDS, harmless, plant

from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.personal import MASKS, Personal, PersonalOptions, find_personal

LIST = Path(__file__).parents[1] / "tests/unit/data/personal.jsonl"
PLANTED = 3_000
HARMLESS = 60_000
DOCUMENTS = 200_000
# A text, and the kind of personal data in it and the data itself, or nothing.
Case = tuple[str, str | None, str]


def main() -> None:
    show("written by hand", listed())
    print()
    show("planted", planted())
    if len(sys.argv) > 1:
        print()
        read(Path(sys.argv[1]))


def listed() -> Iterator[Case]:
    """The list of the tests."""
    for line in LIST.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        yield case["text"], case.get("kind"), case.get("data", "")


def planted() -> Iterator[Case]:
    """Random numbers of every kind, and texts that have none."""
    draw = random.Random(1)
    for kind in KINDS:
        for _ in range(PLANTED):
            text, data = plant(kind, draw)
            yield text, kind, data
    for _ in range(HARMLESS):
        yield harmless(draw), None, ""


def show(title: str, cases: Iterable[Case]) -> None:
    """A row for each kind. What is found in a harmless text, or beside the data, is a false finding of its kind."""
    there, right, false = Counter[str](), Counter[str](), Counter[str]()
    harmless_texts = touched = 0
    for text, kind, data in cases:
        found = [(finding.name, text[finding.start : finding.end]) for finding in find_personal(text, addresses=True)]
        if kind is None:
            harmless_texts += 1
            touched += bool(found)
        else:
            there[kind] += 1
        for name, shown in found:
            hit = name == kind and shown.strip("([") == data.strip("([")
            (right if hit else false)[name] += 1
    print(f"{title:18} {'texts':>7} {'recall':>8} {'precision':>10}")
    for name in MASKS:
        if there[name]:
            precision = right[name] / max(1, right[name] + false[name])
            print(f"  {name:16} {there[name]:7,} {right[name] / there[name]:8.2%} {precision:10.2%}")
    total, hits = sum(there.values()), sum(right.values())
    print(f"  {'all':16} {total:7,} {hits / total:8.2%} {hits / max(1, hits + sum(false.values())):10.2%}")
    print(f"  {harmless_texts:,} harmless texts, {touched:,} of them changed")


def read(path: Path) -> None:
    """What the stage finds in documents, and how long it takes."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        pages = [Page(json.loads(line)["text"]) for line, _ in zip(lines, range(DOCUMENTS), strict=False)]
    stage = Personal(PersonalOptions())
    seconds = []
    for _ in range(3):
        start = time.process_time()
        results = [stage(page) for page in pages]
        seconds.append(time.process_time() - start)
    found = Counter(name for result in results for name in getattr(result, "counts", {}))
    print(f"{path.name}: {len(pages):,} documents, {len(pages) / min(seconds):,.0f} a second")
    print(f"  changed: {sum(result is not None for result in results):,}", *(f"{n} {c}" for n, c in found.items()))


if __name__ == "__main__":
    main()
