"""The whole job in minutes, for real: text, tokenizer, shards, parallel training, a kill, an exact resume, a report.

Trains the same run twice on four ranks (tensor 2 x pipeline 2): once undisturbed, once killed with SIGKILL half-way
and started again. Every loss must be the same to the last bit, or the demo fails.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from generate import generate

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
DATA, CONTROL, RUN = RUNS / "demo-data", RUNS / "demo-control", RUNS / "demo"
CONFIG = ROOT / "configs/runs/demo.yaml"
CORPUS_BYTES = 4_000_000
VOCABULARY = 4096
PROMPTS = ("대한민국의 수도는", "파이썬에서 파일을 읽으려면", "오늘 점심은")


def main() -> None:
    start = time.monotonic()
    for folder in (DATA, CONTROL, RUN):
        if folder.exists():
            print(f"demo: removing {folder.relative_to(ROOT)} of an earlier demo")
            shutil.rmtree(folder)
    DATA.mkdir(parents=True)

    say(1, "a corpus of hand-written and generated Korean")
    corpus = write_corpus(DATA / "corpus.jsonl")
    say(2, "a SentencePiece Unigram tokenizer, checked before it is written")
    megatron_ko(
        "tokenizer", "train", "--input", corpus, "--model", "unigram", "--vocab-size", VOCABULARY,
        "--output", DATA / "tokenizer",
    )  # fmt: skip
    say(3, "indexed shards")
    megatron_ko(
        "data", "preprocess", "--input", corpus, "--tokenizer", DATA / "tokenizer",
        "--output", DATA / "corpus", "--workers", 2,
    )  # fmt: skip
    say(4, "the control: one run on 4 ranks, undisturbed")
    megatron_ko("train", CONFIG, f"run.dir={CONTROL}")
    steps = losses(CONTROL)
    say(5, f"the same run, killed with SIGKILL after step {len(steps) // 2 + 5}")
    killed_at = train_until_killed(after_step=len(steps) // 2 + 5)
    say(6, "the same command again: it resumes by itself")
    megatron_ko("train", CONFIG, f"run.dir={RUN}")
    say(7, "a report, and some text")
    megatron_ko("report", RUN)
    for prompt in PROMPTS:
        megatron_ko("generate", RUN, "--prompt", prompt, "--max-new-tokens", 40, "--seed", 7)
    conclude(time.monotonic() - start, killed_at)


def say(number: int, what: str) -> None:
    print(f"\n=== demo {number}/7: {what}", flush=True)


def write_corpus(path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for document in generate(CORPUS_BYTES, seed=7):
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
    print(f"demo: {path.stat().st_size / 1e6:.1f} MB in {path.relative_to(ROOT)}")
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)]


def megatron_ko(*words: object) -> None:
    """Run a verb as a user would, and stop the demo if it fails."""
    print("$ megatron-ko", *words, flush=True)
    code = subprocess.run(command(*words)).returncode
    if code:
        sys.exit(f"demo: FAILED: 'megatron-ko {words[0]}' ended with exit code {code}")


def train_until_killed(after_step: int) -> int:
    """Train, and kill the whole process group without warning once ``after_step`` is in the metric store."""
    print("$ megatron-ko train", CONFIG, f"run.dir={RUN}", flush=True)
    process = subprocess.Popen(command("train", CONFIG, f"run.dir={RUN}"), start_new_session=True)
    while process.poll() is None:
        time.sleep(0.05)
        done = losses(RUN)
        if len(done) >= after_step:
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"demo: killed -9 after step {max(done)}", flush=True)
            return max(done)
    sys.exit(f"demo: FAILED: training ended with {process.returncode} before it could be killed")


def losses(run: Path) -> dict[int, str]:
    """The exact loss of every step in the metric store."""
    return {line["step"]: line["loss_hex"] for line in read_metrics(run, "train")}


def read_metrics(run: Path, name: str) -> list[dict]:
    path = run / "metrics" / f"{name}.jsonl"
    # A line that is still being written has no end yet.
    text = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def conclude(seconds: float, killed_at: int) -> None:
    control, resumed = losses(CONTROL), losses(RUN)
    if control != resumed:
        different = [step for step in control if control[step] != resumed.get(step)]
        sys.exit(f"demo: FAILED: the resumed run differs from its control at steps {different}")
    sessions = json.loads((RUN / "lineage.json").read_text(encoding="utf-8"))["sessions"]
    train, valid = read_metrics(RUN, "train"), read_metrics(RUN, "valid")
    after = len(train) - sessions[-1]["resumed_from_step"]
    print(f"\ndemo: report in {(RUN / 'report/index.html').relative_to(ROOT)}")
    print(
        f"demo: OK  loss {train[0]['loss']:.2f} -> {train[-1]['loss']:.2f}, validation {valid[-1]['valid_loss']:.2f}; "
        f"killed after step {killed_at}, resumed from {sessions[-1]['resumed_from_step']}, "
        f"{after} of {after} later losses bit-identical; {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
