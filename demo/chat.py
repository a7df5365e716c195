"""From the model of the demo to one that answers: SFT on hand-written conversations, DPO on pairs, a conversation.

The model is far too small to know anything; it shows every step of a real post-training in minutes.
"""

import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import demo
from demo import DATA, ROOT, RUN, RUNS, megatron_ko, read_metrics

CONVERSATIONS = ROOT / "demo/chat/conversations.jsonl"
FOLDER, SFT, DPO = RUNS / "demo-chat-data", RUNS / "demo-chat", RUNS / "demo-chat-dpo"
QUESTIONS = ("한국의 수도는 어디인가요?", "물은 몇 도에서 끓나요?", "설날에는 무엇을 먹나요?")
STEPS = 6


def main() -> None:
    start = time.monotonic()
    if not (RUN / "checkpoints").is_dir():
        print("demo-chat: no demo model yet: make demo comes first")
        demo.main()
    for folder in (FOLDER, SFT, DPO):
        shutil.rmtree(folder, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    say(1, "a chat template for the tokenizer of the demo")
    shutil.copytree(DATA / "tokenizer", FOLDER / "tokenizer")
    megatron_ko("tokenizer", "chat", FOLDER / "tokenizer", "--set", "chatml")
    say(2, "conversations and preferences as tokens, each with what is trained on it")
    encode("chat", CONVERSATIONS, FOLDER / "chat", 256)
    encode("preference", write_pairs(FOLDER / "pairs.jsonl"), FOLDER / "pairs", 512)
    megatron_ko("data", "preview", FOLDER / "chat", "--tokenizer", FOLDER / "tokenizer", "--rows", 1)
    say(3, "SFT: answers are learnt, conversations packed together")
    megatron_ko("train", ROOT / "configs/runs/demo-chat.yaml")
    say(4, "DPO: an answer that fits is preferred to one that does not")
    megatron_ko("train", ROOT / "configs/runs/demo-chat-dpo.yaml")
    say(5, "answers, and where the model comes from")
    for question in QUESTIONS:
        megatron_ko("generate", DPO, "--chat", "--prompt", question, "--temperature", 0, "--max-new-tokens", 60)
    say(6, "its reports and its lineage")
    megatron_ko("report", DPO)
    megatron_ko("lineage", "show", DPO)
    conclude(time.monotonic() - start)


def say(number: int, what: str) -> None:
    print(f"\n=== demo-chat {number}/{STEPS}: {what}", flush=True)


def encode(verb: str, source: Path, output: Path, length: int) -> None:
    megatron_ko(
        "data", verb, "--input", source, "--tokenizer", FOLDER / "tokenizer", "--output", output,
        "--sequence-length", length, "--too-long", "cut", "--workers", 2,
    )  # fmt: skip


def write_pairs(path: Path) -> Path:
    """To each question its answer, and as the worse one the answer to another question."""
    turns = []
    for line in CONVERSATIONS.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        turns += [(messages[n]["content"], messages[n + 1]["content"]) for n in range(0, len(messages), 2)]
    with path.open("w", encoding="utf-8") as file:
        for number, (question, answer) in enumerate(turns):
            other = turns[(number + len(turns) // 2) % len(turns)][1]
            file.write(json.dumps({"prompt": question, "chosen": answer, "rejected": other}, ensure_ascii=False) + "\n")
    return path


def conclude(seconds: float) -> None:
    sft, dpo = read_metrics(SFT, "train"), read_metrics(DPO, "train")
    if not sft[-1]["loss"] < sft[0]["loss"]:
        sys.exit("demo-chat: FAILED: SFT has learnt nothing")
    if abs(dpo[0]["margin"]) > 1e-4 or not dpo[-1]["accuracy"] > 0.8:
        sys.exit("demo-chat: FAILED: DPO did not begin at its reference, or has learnt nothing")
    print(
        f"\ndemo-chat: OK  SFT loss {sft[0]['loss']:.2f} -> {sft[-1]['loss']:.2f}; DPO loss {dpo[0]['loss']:.4f} -> "
        f"{dpo[-1]['loss']:.4f}, accuracy {dpo[-1]['accuracy']:.0%}; {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
