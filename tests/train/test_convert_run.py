"""From a trained run to Hugging Face and back into training: the same weights all the way, at any layout."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from isolated import isolated
from patience import PATIENCE
from peer_models import transformers_model
from train_runs import NewRun, Run
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_ko.artifacts.lineage import draw
from megatron_ko.artifacts.native import describe
from megatron_ko.config import load_model_config
from megatron_ko.eval.generate import document_prompt, generate
from megatron_ko.eval.load import load_run
from megatron_ko.eval.sampling import Sampling

ROOT = Path(__file__).parents[2]
SPREAD = ("parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence_parallel=true", "launch.ranks_per_node=4")


def convert(verb: str, source: Path, output: Path, *more: str) -> dict[str, float]:
    command = [sys.executable, "-m", "megatron_ko.cli.main", "convert", verb, str(source), str(output), "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def first_loss(run: Run, *more: str) -> float:
    ended = run.train("training.steps=2", "optim.warmup_steps=0", "eval.samples=0", *more)
    assert ended.returncode == 0, ended.stderr
    loss: float = run.lines("train")[0]["loss"]
    return loss


@pytest.mark.slow
def test_a_spread_run_exports_imports_and_trains_on(new_run: NewRun, tmp_path: Path) -> None:
    trained = new_run("trained", *SPREAD)
    assert trained.train().returncode == 0
    gate = convert("hf-export", trained.folder, tmp_path / "hf")
    assert gate["max_difference"] < 1e-4 and gate["top1"] == 1.0
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert network.config.vocab_size == 600 and network.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer.encode("한국어 모델", add_special_tokens=False)) == "한국어 모델"
    convert("hf-import", tmp_path / "hf", tmp_path / "native")
    again = first_loss(new_run("from-run", f"checkpoint.start_from={trained.folder}"))
    assert again < trained.lines("train")[0]["loss"] - 0.5
    imported = f"checkpoint.start_from={tmp_path / 'native'}"
    assert first_loss(new_run("from-import", imported)) == again
    assert first_loss(new_run("from-import-spread", imported, *SPREAD)) == pytest.approx(again, rel=1e-6)
    assert isolated(greedy, tmp_path / "native") == isolated(greedy, trained.folder)
    check_ancestry(trained, tmp_path)


def greedy(folder: Path) -> list[int]:
    loaded = load_run(folder)
    return generate(loaded, [document_prompt(loaded, "한국의")], Sampling(max_new_tokens=20, temperature=0))[0].tokens


def check_ancestry(trained: Run, folder: Path) -> None:
    """From a run that started with an import, over the export, to the corpus of the first run."""
    (native,) = json.loads((folder / "from-import/lineage.json").read_text())["parents"]
    (exported,) = native["record"]["parents"]
    (run,) = exported["record"]["parents"]
    assert [node["path"] for node in (native, exported, run)] == [
        str(path) for path in (folder / "native", folder / "hf", trained.folder)
    ]
    assert run["step"] == 30 and run["record"]["corpus"][0]["tokens"] > 0
    lines = list(draw(describe(folder / "from-import")))
    assert any("corpus" in line and "│" not in line and line.startswith("   ") for line in lines)
    card = (folder / "hf/README.md").read_text(encoding="utf-8")
    losses = [line["loss"] for line in trained.lines("train") if line["step"] == 30]
    assert f"Loss of training: {losses[0]:.4f} at step 30." in card and f"{run['tokens']:,} tokens" in card


@pytest.mark.slow
def test_a_run_is_exported_while_it_trains_and_removes_checkpoints(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run("busy", "training.steps=100000", "checkpoint.interval=2", "checkpoint.keep=1", "eval.samples=0")
    training = subprocess.Popen(run.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while run.last_step() < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        steps = []
        for number in range(3):
            convert("hf-export", run.folder, tmp_path / f"hf-{number}", *(() if number else ("--proof", "quick")))
            (source,) = json.loads((tmp_path / f"hf-{number}/lineage.json").read_text())["parents"]
            steps.append(source["step"])
        assert training.poll() is None and steps == sorted({*steps})
        assert run.last_step() > steps[-1] + 4, "the training went on meanwhile"
    finally:
        training.send_signal(signal.SIGTERM)
        training.wait(PATIENCE)


def test_other_networks_and_tokenizers_are_no_start(new_run: NewRun, tmp_path: Path) -> None:
    trained = new_run("trained", "training.steps=2", "checkpoint.interval=2", "eval.samples=0")
    assert trained.train("optim.warmup_steps=0").returncode == 0
    start = f"checkpoint.start_from={trained.folder}"
    for override, remedy in (
        ("model.ffn_hidden_size=96", "model.ffn_hidden_size=64"),
        ("model.rope.theta=500", "model.rope.theta=10000.0"),
        ("model.tie_embeddings=false", "model.tie_embeddings=true"),
    ):
        ended = new_run("other", start, override).train()
        assert ended.returncode == 2 and f"remedy:   {remedy}\n" in ended.stderr
        assert not (tmp_path / "other/checkpoints").exists()
    stretched = "model.rope.scaling={type: yarn, factor: 2.0, original_max_position_embeddings: 32}"
    ended = new_run("stretched", start, stretched, "training.steps=1", "eval.samples=0").train("optim.warmup_steps=0")
    assert ended.returncode == 0, ended.stderr  # a longer context begins with the weights of the shorter one
    ended = new_run("nowhere", f"checkpoint.start_from={tmp_path}").train()
    assert ended.returncode == 2 and "no native model" in ended.stderr


@pytest.mark.slow
def test_smollm2_imports_trains_in_two_stages_exports_and_reloads(new_run: NewRun, tmp_path: Path) -> None:
    model = ROOT / "configs/models/smollm2-135m.yaml"
    torch.manual_seed(0)
    peer = transformers_model(load_model_config(model))
    assert peer.num_parameters() == 134_515_008
    peer.save_pretrained(tmp_path / "smollm2")
    convert("hf-import", tmp_path / "smollm2", tmp_path / "native")
    tiny = new_run("continued")
    config = tmp_path / "smollm2.yaml"
    config.write_text(f"extends: {tiny.config}\nmodel: {{from: {model}}}\n", encoding="utf-8")
    run = replace(
        tiny, config=config, overrides=(f"checkpoint.start_from={tmp_path / 'native'}", "parallel.pipeline=2",
        "launch.ranks_per_node=2", "training.steps=20", "training.global_batch_size=4", "training.micro_batch_size=2",
        "checkpoint.interval=20", "eval.samples=0", "optim.lr=1e-4"),
    )  # fmt: skip
    ended = run.train()
    assert ended.returncode == 0 and run.last_step() == 20, ended
    convert("hf-export", run.folder, tmp_path / "export", "--dtype", "bfloat16")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype="auto")
    assert network.num_parameters() == 134_515_008 and network.dtype == torch.bfloat16
