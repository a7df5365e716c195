"""A tokenizer and shards for the steps: what they hold does not change the time of a step."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VOCABULARY = 2048  # no model of a step has fewer rows


def make_shards(folder: Path, size: str = "6MB") -> None:
    """Write tokenizer/ and the shards of the name corpus, from a generated corpus. On the CPU, in seconds."""
    if (folder / "corpus.idx").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.jsonl"
    run(ROOT / "demo/generate.py", "--size", size, "--seed", "1", "--output", corpus)
    verb("tokenizer", "train", "--input", corpus, "--model", "byte-bpe", "--vocab-size", VOCABULARY,
         "--output", folder / "tokenizer")  # fmt: skip
    verb("data", "preprocess", "--input", corpus, "--tokenizer", folder / "tokenizer", "--output", folder / "corpus")
    corpus.unlink()


def verb(*words: object) -> None:
    run("-m", "megatron_ko.cli.main", *words)


def run(*words: object) -> None:
    environment = {**os.environ, "MEGATRON_KO_DEVICE": "cpu"}
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=sys.stderr, env=environment, cwd=ROOT)


if __name__ == "__main__":
    make_shards(Path(sys.argv[1]))
