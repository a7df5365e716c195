"""What cannot work is refused before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CPU_SECONDS = 1.5
RUN = """
run: {dir: run}
model: {num_layers: 1, hidden_size: 8, ffn_hidden_size: 8, num_attention_heads: 1, vocab_size: 8,
        max_position_embeddings: 8}
data: {tokenizer: nowhere, sources: [{prefix: nowhere}], sequence_length: 8}
optim: {lr: 1.0e-3}
training: {steps: 1, global_batch_size: 1}
"""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("generate nowhere --prompt x", 2, "there is no native model in this folder"),
        ("convert hf-export nowhere out", 2, "there is no native model in this folder"),
        ("convert hf-import nowhere out", 2, "config.json cannot be read"),
        ("convert hf-import meta-llama/Llama-3.2-1B out", 2, "hf download meta-llama/Llama-3.2-1B"),
        ("convert gguf nowhere out", 2, "there is no native model in this folder"),
        ("convert merge nowhere elsewhere out", 2, "there is no native model in this folder"),
        ("convert upcycle nowhere out", 2, "there is no native model in this folder"),
        ("train nowhere.yaml", 2, "configuration file not found"),
        ("train run.yaml --dry-run --no-data", 0, "layout      tensor 1"),
        ("train run.yaml --dry-run", 2, "nowhere"),
        ("config check run.yaml", 2, "nowhere"),
        ("train run.yaml model.hiden_size=8", 2, "did you mean 'model.hidden_size'"),
    ],
)
def test_a_refusal_takes_a_moment(words: str, code: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    before = os.times()
    command = [sys.executable, "-m", "megatron_ko.cli.main", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr
    assert spent < CPU_SECONDS
