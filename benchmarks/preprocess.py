"""How fast is text encoded? `megatron-ko data preprocess` against Megatron-LM's algorithm and the tokenizer itself.

The corpus is the NSMC film reviews (712,383 short documents, 61.9 MB of text) where they are, else generated Korean;
the tokenizer is SentencePiece Unigram, 16,000 ids. Each way runs in a process of its own, in turns. Times begin when
that process has imported what it needs, and end when its files have their names. Ratios are taken within a turn, and
the median is shown: other work on the machine disturbs all ways of a turn alike.

* Megatron-LM's algorithm, in our words: one line at a time through a multiprocessing pool (json, then megatron-core's
  SentencePiece tokenizer), and from there one document at a time into megatron-core's IndexedDatasetBuilder.
* The ceiling: texts are in the memory of the workers already, which do nothing but SentencePiece's own encode of lists.
  Start-up of these workers is not counted.
* The same ceiling with the array interface of our tokenizer, which is faster than SentencePiece's lists.

    python benchmarks/preprocess.py [--rounds 3] [--workers 2] [--times 8] [--json]
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
REVIEWS = Path(os.environ.get("MEGATRON_KO_SHARED_DATA", ROOT.parent / "shared/data")) / "nsmc_reviews.jsonl.gz"
PEERS = Path(__file__).with_name("preprocess_peers.py")
VOCABULARY = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="Turns.")
    parser.add_argument("--workers", type=int, default=2, help="Processes of each way.")
    parser.add_argument("--times", type=int, default=8, help="How many times the corpus is given for the large run.")
    parser.add_argument("--tokenizer", type=Path, help="Folder of a trained tokenizer; default: one is trained.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = unpack(folder)
        tokenizer = options.tokenizer or train(folder, corpus)
        turns = [turn(folder, corpus, tokenizer, options.workers) for _ in range(options.rounds)]
        large = [copy(corpus, number) for number in range(options.times)]
        big = measure("ours", large, tokenizer, options.workers, folder)
    result = summary(turns, big, options)
    print(json.dumps(result) if options.json else table(result))


def unpack(folder: Path) -> Path:
    """The reviews, or generated Korean where they are not."""
    corpus = folder / "corpus.jsonl"
    if REVIEWS.is_file():
        with gzip.open(REVIEWS) as packed, corpus.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
        return corpus
    print(f"no {REVIEWS}: generated Korean instead", file=sys.stderr)
    generate = [sys.executable, ROOT / "demo/generate.py", "--size", "60MB", "--seed", "1", "--output", corpus]
    subprocess.run(generate, check=True, stdout=sys.stderr)
    return corpus


def train(folder: Path, corpus: Path) -> Path:
    words = ["--input", corpus, "--vocab-size", str(VOCABULARY), "--output", folder / "tokenizer"]
    command = [sys.executable, "-m", "megatron_ko.cli.main", "tokenizer", "train", *words, "--max-megabytes", "10"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "tokenizer"


def copy(corpus: Path, number: int) -> Path:
    """The corpus once more, with its first line changed: the same file twice would be refused."""
    target = corpus.with_name(f"copy{number}.jsonl")
    with corpus.open("rb") as source, target.open("wb") as sink:
        sink.write(json.dumps({"text": f"사본 {number}"}).encode() + b"\n")
        shutil.copyfileobj(source, sink)
    return target


def turn(folder: Path, corpus: Path, tokenizer: Path, workers: int) -> dict[str, dict[str, float]]:
    """Every way once."""
    ways = ("ours", "ceiling", "arrays", "megatron")
    return {way: measure(way, [corpus], tokenizer, workers, folder) for way in ways}


def measure(way: str, inputs: list[Path], tokenizer: Path, workers: int, folder: Path) -> dict[str, float]:
    """Run one way; adds the largest memory that its processes held together, in bytes."""
    command = [sys.executable, str(PEERS), way, str(tokenizer), str(workers), str(folder / "out"), *map(str, inputs)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    memory = Memory(process.pid)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{way} failed")
    for path in folder.glob("out*"):
        path.unlink()
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return {**found, "peak_bytes": memory.stop()}


class Memory(threading.Thread):
    """Adds up the proportional set sizes of a process and its children, 20 times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._peak, self._ended = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self._peak = max(self._peak, self._held())

    def stop(self) -> int:
        """The largest sum that was seen."""
        self._ended.set()
        self.join()
        return self._peak

    def _held(self) -> int:
        total = 0
        try:
            root = psutil.Process(self._pid)
            for process in (root, *root.children(recursive=True)):
                total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
        return total


def summary(
    turns: list[dict[str, dict[str, float]]], big: dict[str, float], options: argparse.Namespace
) -> dict[str, object]:
    def speed(way: str) -> float:
        return statistics.median(one[way]["documents"] / one[way]["seconds"] for one in turns)

    def ratio(way: str) -> float:
        return statistics.median(one[way]["seconds"] / one["ours"]["seconds"] for one in turns)

    def share(way: str, found: dict[str, float]) -> float:
        """Of the ceiling of the same turn; of the large run, the median ceiling."""
        return statistics.median(found["documents"] / found["seconds"] / (one[way]["documents"] / one[way]["seconds"])
                                 for one in turns)  # fmt: skip

    return {
        "documents": turns[0]["ours"]["documents"],
        "rounds": options.rounds,
        "workers": options.workers,
        "times": options.times,
        "documents_per_s": {way: speed(way) for way in turns[0]} | {"large": big["documents"] / big["seconds"]},
        "peak_bytes": {way: max(one[way]["peak_bytes"] for one in turns) for way in turns[0]}
        | {"large": big["peak_bytes"]},
        "to_megatron": ratio("megatron"),
        "of_ceiling": ratio("ceiling"),
        "of_arrays": ratio("arrays"),
        "large_of_ceiling": share("ceiling", big),
        "large_of_arrays": share("arrays", big),
    }


def table(result: dict[str, object]) -> str:
    speeds, peaks = result["documents_per_s"], result["peak_bytes"]
    assert isinstance(speeds, dict) and isinstance(peaks, dict)
    names = {
        "ours": "megatron-ko data preprocess",
        "large": f"  the same, {result['times']} times the corpus",
        "megatron": "Megatron-LM's algorithm",
        "ceiling": "encode only, SentencePiece's lists",
        "arrays": "encode only, our arrays",
    }
    ratios = {
        "megatron": f"ours is {result['to_megatron']:.1f}x",
        "ceiling": f"ours is {result['of_ceiling']:.0%}; {result['large_of_ceiling']:.0%} at {result['times']}x",
        "arrays": f"ours is {result['of_arrays']:.0%}; {result['large_of_arrays']:.0%} at {result['times']}x",
    }
    lines = [f"{result['documents']:,.0f} documents, {result['workers']} workers, median of {result['rounds']} turns"]
    lines.append(f"{'':<36}{'documents/s':>12}{'peak MiB':>10}")
    lines += [
        f"{name:<36}{speeds[way]:>12,.0f}{peaks[way] / 2**20:>10,.0f}  {ratios.get(way, '')}".rstrip()
        for way, name in names.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
