"""`megatron-ko data dedup --near` on real Korean documents with planted near-duplicates: recall, errors, speed, memory.

    python benchmarks/dedup.py [--data FOLDER] [--workers 2] [--tables recall speed peers] [--large]

Documents: tech_docs_ko. Copies of every document are planted with 5 to 20 % of their words edited (see planted.py), one
corpus for each kind of edit and rate; a pair is found if original and copy do not both stay. Distinct documents are
those whose true similarity to every other one, by sets of 5-grams written out in plain Python, is under 0.2; one of
them that is removed for a document that it has nothing to do with is a false positive.

Peers in the same run: datasketch and rensa, their MinHash and LSH with the same shingles, bands and threshold, in one
process from texts in memory (neither reads files, verifies, or writes).
"""

import argparse
import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zstandard
from planted import KINDS, RATES, editor

from megatron_ko.data.dedup.dedup import dedup
from megatron_ko.data.dedup.lsh import Bands, bands_for
from megatron_ko.data.dedup.minhash import band_keys, signatures
from megatron_ko.data.dedup.options import THRESHOLD, DedupOptions, InputFiles, Near
from megatron_ko.data.dedup.shingles import Shingles, shingle_hashes
from megatron_ko.data.dedup.similarity import sketches

ROOT = Path(__file__).parents[1]
DISTINCT = 0.2
# For texts with single characters wrong all over.
OCR = 0.22
# Of so many documents one is taken to see how similar edited copies are.
SAMPLED = 8
TABLES = ("recall", "speed", "peers")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--large", action="store_true", help="memory at eight times the size too")
    arguments = parser.parse_args()
    source = arguments.data / "tech_docs_ko.jsonl.gz"
    if not source.is_file():
        print(f"skipped: no real documents at {source}; --data FOLDER")
        return
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    similar = true_similarity(documents)
    distinct = int((similar.max(axis=1) < DISTINCT).sum())
    print(f"tech_docs_ko: {len(documents)} documents, {size_of(documents) / 1e6:.1f} MB; {distinct} of them distinct")
    folder = Path(tempfile.mkdtemp(prefix="dedup-benchmark-"))
    try:
        if "recall" in arguments.tables:
            recall_table(folder, documents, similar)
        if "speed" in arguments.tables:
            speed_table(folder, documents, arguments.workers, arguments.large)
        if "peers" in arguments.tables:
            peers_table(documents)
    finally:
        shutil.rmtree(folder)


def recall_table(folder: Path, documents: Sequence[str], similar: np.ndarray) -> None:
    print("\nplanted copies found, one of every document, by share of words (chars: of characters) edited")
    print(f"{'setting':28}{'edits':7}" + "".join(f"{rate:>8.0%}" for rate in RATES) + f"{'5-20 %':>9}{'false':>8}")
    settings = {
        f"default: {Near().shingles} {THRESHOLD} {Near().bands}": Near(),
        f"char:5 {OCR} {bands_for(OCR)}": Near(threshold=OCR, bands=bands_for(OCR)),
        "FineWeb: word:5 0.75 14x8": Near(Shingles("word", 5), 0.75, Bands(14, 8)),
    }
    names = ("true similarity, median", *settings)
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {(name, kind): [] for name in names for kind in KINDS}
    for kind in KINDS:
        for rate in RATES:
            edit = editor(documents, kind, rate, seed=0)
            corpus = write_corpus(folder / "planted.jsonl", [*documents, *map(edit, documents)])
            sampled = documents[::SAMPLED]
            alike = [jaccard(five_grams(text), five_grams(edit(text))) for text in sampled]
            rows["true similarity, median", kind].append((float(np.median(alike)), 0.0))
            for name, near in settings.items():
                rows[name, kind].append(planted_run(corpus, folder / "planted", near, similar))
    for (name, kind), results in rows.items():
        cells = "".join(f"{found:>8.1%}" for found, _ in results)
        found, false = (sum(column) / len(RATES) for column in zip(*results, strict=True))
        print(f"{name if kind == KINDS[0] else '':28}{kind:7}{cells}{found:>9.1%}{false:>8.2%}")
    print("false: distinct documents (and their copies) that were removed for one of another family", flush=True)


def planted_run(corpus: Path, output: Path, near: Near, similar: np.ndarray) -> tuple[float, float]:
    """Share of pairs that do not both stay, and share of distinct documents that are removed for strangers."""
    number = len(similar)
    dedup(DedupOptions(InputFiles((corpus,)), output, near=near))
    stays = dict(enumerate(range(2 * number)))
    with zstandard.open(output / "removed.jsonl.zst", "rt", encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            stays[line["position"] - 1] = line["kept_position"] - 1
    shutil.rmtree(output)
    found = sum(stays[number + place] != number + place or stays[place] != place for place in range(number))
    distinct = [place for place in range(number) if similar[place].max() < DISTINCT]
    strangers = [place for place in distinct for copy in (place, number + place) if stays[copy] % number != place]
    return found / number, len(strangers) / (2 * len(distinct))


def speed_table(folder: Path, documents: Sequence[str], workers: int, large: bool) -> None:
    print(f"\nmegatron-ko data dedup, whole command from jsonl to jsonl.zst, {workers} workers, best of 3")
    print(f"{'corpus':44}{'MB':>8}{'documents':>11}{'removed':>9}{'seconds':>9}{'MB/s':>7}{'CPU s':>7}{'peak MiB':>10}")
    copies = [(kind, rate) for kind in ("words", "block") for rate in RATES]
    planted = [*documents]
    for kind, rate in copies:
        planted += map(editor(documents, kind, rate, seed=1), documents)
    corpora = {"tech_docs_ko": [*documents], "tech_docs_ko + 8 edited copies": planted}
    if large:
        many = [*planted]
        for seed in range(2, 9):
            for kind, rate in copies:
                many += map(editor(documents, kind, rate, seed), documents)
        corpora["tech_docs_ko + 64 edited copies"] = many
    for name, texts in corpora.items():
        corpus = write_corpus(folder / "speed.jsonl", texts)
        for options in (["--near"], []) if name == "tech_docs_ko + 8 edited copies" else (["--near"],):
            runs = [run_command(corpus, folder / "speed", [*options, "--workers", str(workers)]) for _ in range(3)]
            result, seconds, cpu, peak = min(runs, key=lambda run: run[1])
            removed = sum(result["documents"]["removed"].values())
            size = result["bytes_of_text"]["in"] / 1e6
            row = f"{size:>8.1f}{len(texts):>11,}{removed:>9,}{seconds:>9.1f}{size / seconds:>7.1f}{cpu:>7.1f}"
            print(f"{name + (', near' if options else ', exact only'):44}{row}{peak:>10,.0f}", flush=True)


def peers_table(documents: Sequence[str]) -> None:
    """One process each, on the documents and their copies with 20 % of their words edited."""
    edit = editor(documents, "words", 0.20, seed=0)
    texts = [*documents, *map(edit, documents)]
    print(f"\npeers, one process, {size_of(texts) / 1e6:.1f} MB in memory, words edited at 20 %, {Near().bands} bands")
    print(f"{'':28}{'seconds':>9}{'MB/s':>7}{'found':>8}")
    rows = {"here: hash, sketch, keys": ours(texts)}
    for name, peer in (("datasketch", with_datasketch), ("rensa", with_rensa)):
        try:
            rows[name] = peer(texts)
        except ImportError:
            print(f"{name:28}not installed: pip install {name}")
    for name, (seconds, found) in rows.items():
        speed = size_of(texts) / 1e6 / seconds
        print(f"{name:28}{seconds:>9.1f}{speed:>7.1f}{found:>8.1%}", flush=True)


def ours(texts: Sequence[str]) -> tuple[float, float]:
    """The same work as the peers do: signatures, and pairs that share a band."""
    start = time.perf_counter()
    keys = []
    for text in texts:
        hashes = shingle_hashes([text], Near().shingles)
        keys.append(band_keys(signatures(hashes, Near().bands.hashes), Near().bands.bands, Near().bands.rows)[0])
        sketches(hashes)
    seconds = time.perf_counter() - start
    number = len(texts) // 2
    return seconds, sum(bool((keys[n] == keys[number + n]).any()) for n in range(number)) / number


def with_datasketch(texts: Sequence[str]) -> tuple[float, float]:
    from datasketch import MinHash, MinHashLSH

    bands = Near().bands
    start = time.perf_counter()
    index = MinHashLSH(params=(bands.bands, bands.rows), num_perm=bands.hashes)
    found = 0
    for number, text in enumerate(texts):
        minhash = MinHash(num_perm=bands.hashes)
        minhash.update_batch([shingle.encode() for shingle in five_grams(text)])
        found += number - len(texts) // 2 in index.query(minhash)
        index.insert(number, minhash)
    return time.perf_counter() - start, found / (len(texts) // 2)


def with_rensa(texts: Sequence[str]) -> tuple[float, float]:
    from rensa import RMinHash, RMinHashLSH

    bands = Near().bands
    start = time.perf_counter()
    index = RMinHashLSH(threshold=THRESHOLD, num_perm=bands.hashes, num_bands=bands.bands)
    found = 0
    for number, text in enumerate(texts):
        minhash = RMinHash(num_perm=bands.hashes, seed=42)
        minhash.update(list(five_grams(text)))
        found += number - len(texts) // 2 in index.query(minhash)
        index.insert(number, minhash)
    return time.perf_counter() - start, found / (len(texts) // 2)


def five_grams(text: str) -> set[str]:
    """Sets of shingles as the definition says."""
    text = " ".join(text.split())
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


def jaccard(one: set[str], two: set[str]) -> float:
    return len(one & two) / len(one | two)


def true_similarity(documents: Sequence[str]) -> np.ndarray:
    """[n, n] Jaccard similarity of all pairs, counted, with zeros on the diagonal."""
    numbers: dict[str, int] = {}
    sets = [np.array([numbers.setdefault(gram, len(numbers)) for gram in five_grams(text)]) for text in documents]
    bits = np.zeros((len(documents), -(-len(numbers) // 64) * 8), np.uint8)
    for row, members in zip(bits, sets, strict=True):
        np.bitwise_or.at(row, members // 8, (1 << (members % 8)).astype(np.uint8))
    words = bits.view(np.uint64)
    similar = np.zeros((len(documents), len(documents)))
    for one in range(len(documents)):
        for two in range(one):
            common = int(np.bitwise_count(words[one] & words[two]).sum())
            similar[one, two] = similar[two, one] = common / (sets[one].size + sets[two].size - common)
    return similar


def write_corpus(path: Path, texts: Sequence[str]) -> Path:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    return path


def run_command(corpus: Path, output: Path, options: Sequence[str]) -> tuple[dict[str, Any], float, float, float]:
    """The command's JSON, its seconds, CPU seconds, and the most memory that its processes had together, in MiB."""
    words = ["data", "dedup", "--input", str(corpus), "--output", str(output), "--json", *options]
    start, used = time.perf_counter(), cpu_seconds()
    process = psutil.Popen([sys.executable, "-m", "megatron_ko.cli.main", *words], cwd=ROOT, stdout=subprocess.PIPE)
    peak = 0
    watched = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not watched.wait(0.05):
            held = 0
            with contextlib.suppress(psutil.Error):
                for one in [process, *process.children(recursive=True)]:
                    held += one.memory_full_info().pss
            peak = max(peak, held)

    thread = threading.Thread(target=watch)
    thread.start()
    content, _ = process.communicate()
    seconds = time.perf_counter() - start
    watched.set()
    thread.join()
    shutil.rmtree(output)
    return json.loads(content), seconds, cpu_seconds() - used, peak / (1 << 20)


def cpu_seconds() -> float:
    """Of all processes that this one has started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def size_of(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


if __name__ == "__main__":
    main()
