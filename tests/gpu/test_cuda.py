"""The same run on a CUDA device and on the CPU of the same machine: the same losses, and an exact resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_ko.data.preprocess import PreprocessOptions, preprocess

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

RUN = """
run: {{dir: {folder}/run, seed: 3}}
model: {{num_layers: 4, hidden_size: 128, ffn_hidden_size: 384, num_attention_heads: 4, num_query_groups: 2,
        vocab_size: 2048, max_position_embeddings: 128}}
data: {{tokenizer: {tokenizer}, sources: [{{prefix: {folder}/corpus}}], split: [90, 10, 0], sequence_length: 128}}
optim: {{lr: 1.0e-3}}
training: {{steps: 8, global_batch_size: 8, micro_batch_size: 4}}
eval: {{samples: 8}}
checkpoint: {{interval: 4}}
launch: {{ranks_per_node: 1}}
"""


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder, korean) -> Path:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("cuda")
    tokenizer = tokenizer_folder("unigram")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in korean(2000, 1)), encoding="utf-8")
    preprocess(PreprocessOptions(inputs=(corpus,), tokenizer=tokenizer, output=folder / "corpus"))
    path = folder / "run.yaml"
    path.write_text(RUN.format(folder=folder, tokenizer=tokenizer), encoding="utf-8")
    return path


def losses(run_file: Path, run: Path, *overrides: str, device: str = "cuda") -> list[tuple[float, str]]:
    command = [sys.executable, "-m", "megatron_ko.cli.main", "train", str(run_file), f"run.dir={run}", *overrides]
    subprocess.run(command, check=True, env={**os.environ, "MEGATRON_KO_DEVICE": device}, timeout=300)
    lines = (run / "metrics/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["loss"], line["loss_hex"]) for line in map(json.loads, lines)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 2e-2)])
def test_cuda_trains_like_the_cpu(run_file: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    backend = ["precision.backend=portable", f"precision.dtype={dtype}"]
    on_cuda = losses(run_file, tmp_path / "cuda", *backend)
    on_cpu = losses(run_file, tmp_path / "cpu", *backend, device="cpu")
    assert [loss for loss, _ in on_cuda] == pytest.approx([loss for loss, _ in on_cpu], rel=tolerance)


def test_resume_on_cuda_continues_within_rounding(run_file: Path, tmp_path: Path) -> None:
    whole = losses(run_file, tmp_path / "whole")
    run = tmp_path / "resumed"
    losses(run_file, run)
    newest = run / "checkpoints/step_00000008"
    for path in sorted(newest.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    newest.rmdir()
    resumed = losses(run_file, run)
    assert [loss for loss, _ in resumed] == pytest.approx([loss for loss, _ in whole], rel=1e-3)
