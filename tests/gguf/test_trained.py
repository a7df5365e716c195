"""Trained toys on held-out text: what quantisation costs, from a run to files that answer."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_tests import Folder, train
from patience import PATIENCE
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_ko.convert.gguf.export import export_gguf

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "runs/demo"
CONFIG = """
run: {{dir: {folder}/run, name: toy, seed: 7}}
model: {{num_layers: 2, hidden_size: 256, ffn_hidden_size: 512, num_attention_heads: 4, num_query_groups: 2,
         vocab_size: 640, max_position_embeddings: 256}}
precision: {{dtype: fp32}}
data: {{tokenizer: {tokenizer}, sources: [{{prefix: {folder}/corpus}}], split: [100, 0, 0], sequence_length: 128}}
optim: {{lr: 2.0e-3, schedule: wsd, warmup_steps: 5, decay_steps: 20}}
training: {{steps: 80, global_batch_size: 16, micro_batch_size: 16}}
eval: {{samples: 0}}
checkpoint: {{interval: 80}}
logging: {{tensorboard: false}}
launch: {{threads_per_rank: 2}}
"""


def megatron_ko(*words: object) -> str:
    command = [sys.executable, "-m", "megatron_ko.cli.main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def toy(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_folder: Callable[[str], Path],
    korean: Callable[[int, int], list[str]],
) -> Path:
    """A run of 80 steps; rows of 256, so that no type is a fall-back."""
    folder = tmp_path_factory.mktemp("toy")
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in korean(4000, 1))
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = tokenizer_folder("byte-bpe")
    (folder / "toy.yaml").write_text(CONFIG.format(folder=folder, tokenizer=tokenizer), encoding="utf-8")
    corpus = ("--input", folder / "corpus.jsonl", "--tokenizer", tokenizer, "--output", folder / "corpus")
    megatron_ko("data", "preprocess", *corpus)
    megatron_ko("train", folder / "toy.yaml")
    losses = [json.loads(line)["loss"] for line in (folder / "run/metrics/train.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 2.5, "trained"
    return folder / "run"


def teach(path: Path, texts: list[str]) -> None:
    """Seconds of training on text: what quantisation does to random experts says nothing of it."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModelForCausalLM.from_pretrained(path).train()
    stream = tokenizer("\n".join(texts), add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    batches = (part.reshape(8, 64) for part in stream[: 60 * 512].split(512))
    assert train(network, ({"input_ids": batch, "labels": batch} for batch in batches), path) < 4


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_survive_quantisation(
    family: str, folder: Folder, tmp_path: Path, korean: Callable[[int, int], list[str]]
) -> None:
    experts = {"family": family, "moe": {"num_experts": 4, "top_k": 2}}
    source = folder(template=None, hidden_size=256, ffn_hidden_size=256, head_dim=64, num_layers=1, **experts)
    teach(source, korean(400, 1))
    exported = export_gguf(source, tmp_path / "out", ["q8_0", "q5_k_m", "q4_k_m"], "\n".join(korean(60, 99)))
    assert [one.fallbacks for one in exported.files] == [{}, {}, {}]


def figures(gates: list[dict[str, Any]], file: str) -> dict[str, Any]:
    found = {one["name"]: one["found"] for one in gates}
    return {
        "kl": float(found[f"{file}: KL divergence"].split()[0]),
        "perplexity": float(found[f"{file}: perplexity"].split()[1]),
        "other top": found[f"{file}: top token"].split(" ")[0],
    }


@pytest.mark.parametrize("source", ["toy", "demo"])
def test_quantisation_of_a_trained_model_costs_little(
    source: str, request: pytest.FixtureRequest, tmp_path: Path, korean: Callable[[int, int], list[str]]
) -> None:
    if source == "demo" and not DEMO.is_dir():
        pytest.skip("runs/demo is not there: make demo")
    run = DEMO if source == "demo" else request.getfixturevalue("toy")
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("\n".join(korean(400, 99)), encoding="utf-8")
    types = ("--types", "f32,f16,bf16,q8_0,q5_k_m,q4_k_m", "--text", held_out, "--json")
    ties = ("--accept-ties",) if source == "demo" else ()  # its tokenizer is a Unigram model
    told = json.loads(megatron_ko("convert", "gguf", run, tmp_path / "out", *types, *ties).splitlines()[-1])
    print(json.dumps({file: figures(told["gates"], file) for file in ("f16", "bf16", "q8_0", "q5_k_m", "q4_k_m")}))
    assert figures(told["gates"], "q8_0")["kl"] < 1e-3
    assert figures(told["gates"], "q4_k_m")["perplexity"] < 1.05
    bits = {one["kind"]: (one["bits"], one["fallbacks"]) for one in told["files"]}
    if source == "toy":
        assert bits["q4_k_m"][0] < 6 and bits["q4_k_m"][1] == bits["q5_k_m"][1] == {}
    else:
        assert bits["q4_k_m"][1], "rows of 128 take other types, which are reported"
