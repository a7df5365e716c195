"""A run directory as training writes it, with curves that look like those of a real run."""

import json
import math
import random
from pathlib import Path

_LAYOUT = {
    "world": 4,
    "tensor": 2,
    "pipeline": 2,
    "context": 1,
    "sequence_parallel": False,
    "distributed_optimizer": True,
}
_SHA = "9f2c4d1e7a6b8035"
_MODEL = "{num_layers: 4, hidden_size: 128, ffn_hidden_size: 384, num_attention_heads: 4, vocab_size: 4096}"


def train_row(step: int, total: int, rng: random.Random, skipped: bool = False) -> dict[str, object]:
    """One line of train.jsonl."""
    progress = step / total
    loss = 2.6 + 5.7 * math.exp(-9 * progress) + rng.gauss(0, 0.09)
    seconds = 0.46 + abs(rng.gauss(0, 0.02)) + (1.9 if step == 1 else 0)
    return {
        "step": step,
        "loss": None if skipped else loss,
        "loss_hex": "nan" if skipped else loss.hex(),
        "grad_norm": None if skipped else 0.5 + 4 * math.exp(-14 * progress) + abs(rng.gauss(0, 0.08)),
        "lr": 3e-3 * min(1, 12 * progress) * (1 if progress < 0.8 else 1 - 0.9 * (progress - 0.8) / 0.2),
        "tokens": step * 2048,
        "samples": step * 8,
        "step_time_s": seconds,
        "tokens_per_s": 2048 / seconds,
        "loss_scale": 1.0,
        "skipped": skipped,
        "memory_peak": 612 * 2**20 + 1000 * step,
        "memory_reserved": 655 * 2**20,
        "tflops": 0.0214,
        "mfu": None,
        "time": 1_760_000_000 + 0.5 * step,
    }


def valid_row(step: int, total: int) -> dict[str, object]:
    """One line of valid.jsonl."""
    loss = 2.75 + 5.5 * math.exp(-9 * step / total)
    return {
        "step": step, "tokens": step * 2048, "valid_loss": loss, "valid_loss_hex": loss.hex(),
        "perplexity": math.exp(loss), "bits_per_byte": loss / 2.9, "samples": 16, "valid_tokens": 4096,
        "eval_time_s": 0.8,
    }  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(directory: Path, steps: int = 120, name: str = "한국어 데모", resumed: int | None = 60) -> Path:
    """Write a run of ``steps`` steps, all done; ``resumed`` is where its second session began."""
    rng = random.Random(steps)
    skipped = {steps // 3} if steps >= 100 else set()
    rows = [train_row(step, steps, rng, step in skipped) for step in range(1, steps + 1)]
    write_lines(directory / "metrics" / "train.jsonl", rows)
    every = max(1, steps // 6)
    write_lines(directory / "metrics" / "valid.jsonl", [valid_row(s, steps) for s in range(every, steps + 1, every)])
    sessions = [{"started": "2025-10-09T08:53:20+00:00", "resumed_from_step": None, "layout": _LAYOUT}]
    if resumed is not None:
        sessions.append({**sessions[0], "started": "2025-10-09T09:01:12+00:00", "resumed_from_step": resumed})
        again = [train_row(step, steps, rng) for step in range(resumed + 1, resumed + 8)]
        write_lines(directory / "metrics" / "superseded.jsonl", again)
    lineage = {
        "run": name,
        "code": {"version": "0.1.0", "commit": "0a1b2c3d4e5f", "dirty": True},
        "tokenizer": {"path": "runs/demo-data/tokenizer", "fingerprint": _SHA * 4},
        "corpus": [
            {"prefix": "data/한국어", "sha256": {"bin": _SHA * 4, "idx": _SHA * 4}, "tokens": 81234, "weight": None}
        ],
        "parents": [],
        "config_sha256": _SHA * 4,
        "environment": {"python": "3.11.9", "torch": "2.13.0", "device": "cpu", "world_size": 4},
        "parameters": 1_312_896,
        "sessions": sessions,
    }
    (directory / "lineage.json").write_text(json.dumps(lineage), encoding="utf-8")
    config = f"run: {{dir: runs/demo, name: {name}, seed: 7}}\nmodel: {_MODEL}\ntraining: {{steps: {steps}}}\n"
    (directory / "config.resolved.yaml").write_text(config, encoding="utf-8")
    for step in (steps // 2, steps):
        folder = directory / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        files = {"model/__0_0.distcp": {"bytes": 15_754_752, "xxh3_128": "0" * 32}}
        manifest = {"step": step, "tokens": step * 2048, "samples": step * 8, "files": files, "complete": True}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return directory
