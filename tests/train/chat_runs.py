"""Runs on a few conversations and preferences."""

import subprocess
import sys
from pathlib import Path

LENGTH = 96
ANSWERS = ("네, 그렇습니다.", "아니요.", "잘 모르겠어요.", "좋은 생각이에요!")


def command(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    program = [sys.executable, "-m", "megatron_ko.cli.main", *words]
    return subprocess.run(program, input=typed, capture_output=True, text=True)


def overrides(rows: Path, kind: str, cache: Path | None = None) -> list[str]:
    source = {"sft": "chat", "kto": "verdicts"}.get(kind, "pairs")
    return [
        f"data.tokenizer={rows / 'tok'}",
        f"data.sources=[{{prefix: {rows / source}}}]",
        f"data.sequence_length={LENGTH}",
        f"model.max_position_embeddings={LENGTH}",
        f"objective.kind={kind}",
        "training.steps=12",
        "checkpoint.interval=6",
        "eval.interval=6",
        *([f"data.cache_dir={cache}"] if cache else []),
    ]
