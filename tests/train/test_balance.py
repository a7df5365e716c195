"""Do experts become equally busy? A toy mixture of experts on skewed data, with each way to balance it, and without."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patience import PATIENCE

from megatron_ko.config import RunConfig
from megatron_ko.data.training.batch import Batch
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.objectives import LanguageModelling
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks
from megatron_ko.train.engine import build_engine
from megatron_ko.train.schedule import lr_at
from megatron_ko.train.step import train_step

pytestmark = pytest.mark.slow
STEPS, LAST, EXPERTS, VOCABULARY, SEQUENCE, BATCH = 300, 50, 8, 512, 64, 16
# An expert bias of so few steps needs a larger rate than the usual 0.001.
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {"aux_loss": "none"},
    "aux loss": {"aux_loss_coeff": 0.02},
    "sequence aux loss": {"aux_loss": "sequence", "aux_loss_coeff": 0.02},
    "expert bias": {"aux_loss": "none", "score": "sigmoid", "expert_bias": True, "expert_bias_update_rate": 0.04},
}


def config(way: str) -> RunConfig:
    nowhere = Path("nowhere")
    return RunConfig.model_validate(
        {
            "run": {"dir": nowhere, "name": "balance"},
            "model": {
                "family": "mixtral",
                "num_layers": 2,
                "hidden_size": 32,
                "ffn_hidden_size": 32,
                "num_attention_heads": 4,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": SEQUENCE,
                "moe": {"num_experts": EXPERTS, "top_k": 2, **WAYS[way]},
            },
            "precision": {"dtype": "fp32"},
            "data": {"tokenizer": nowhere, "sources": ({"prefix": nowhere},), "sequence_length": SEQUENCE},
            "optim": {"lr": 5e-3, "warmup_steps": 10},
            "training": {"steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": BATCH},
        }
    )


def skewed_batch(step: int) -> Batch:
    """Sequences of a few topics, some far more frequent than others; a topic has its own words, by Zipf's law."""
    generator = torch.Generator().manual_seed(step)
    shares = torch.tensor([0.55, 0.2, 0.1, 0.06, 0.04, 0.02, 0.02, 0.01])
    topics = torch.multinomial(shares, BATCH, replacement=True, generator=generator)
    words = VOCABULARY // len(shares)
    zipf = 1 / torch.arange(1, words + 1, dtype=torch.float32)
    drawn = torch.multinomial(zipf, BATCH * (SEQUENCE + 1), replacement=True, generator=generator)
    tokens = drawn.view(BATCH, -1) + (topics * words)[:, None]
    return Batch(
        tokens=tokens[:, :-1],
        labels=tokens[:, 1:],
        loss_mask=torch.ones(BATCH, SEQUENCE),
        position_ids=torch.arange(SEQUENCE).expand(BATCH, -1),
    )


def train_all(path: Path) -> None:
    found = {}
    for way in WAYS:
        chosen = config(way)
        groups = initialise(chosen.parallel, timeout_s=PATIENCE)
        seed_everything(1, groups)
        engine = build_engine(
            chosen, build_model(Blueprint.of(chosen), groups, chosen.run.seed), groups, LanguageModelling()
        )
        loads, losses = [], []
        for step in range(STEPS):
            lr = lr_at(step, chosen.optim, STEPS)
            result = train_step(engine, [skewed_batch(step)], lr=lr, weight_decay=chosen.optim.weight_decay)
            loads.append([layer.loads for layer in result.routing])
            losses.append(result.loss)
        first, last = (np.mean(part, axis=0).max(axis=1).tolist() for part in (loads[:LAST], loads[-LAST:]))
        found[way] = {"first": first, "last": last, "loss": float(np.mean(losses[-LAST:]))}
        destroy()
    path.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("balance") / "found.json"
    assert run_ranks(train_all, 1, (path,), threads=1) == 0
    figures: dict[str, Any] = json.loads(path.read_text())
    for way, figure in figures.items():
        layers = ", ".join(f"{load:.2f}" for load in figure["last"])
        print(f"{way:<18} busiest expert of each layer {layers}   loss {figure['loss']:.3f}")
    return figures


@pytest.mark.parametrize("way", [way for way in WAYS if way != "nothing"])
def test_experts_become_equally_busy(way: str, found: dict[str, Any]) -> None:
    assert max(found[way]["last"]) < 1.3
    assert found[way]["loss"] < found["nothing"]["loss"] + 0.1, "and the model learns as well as before"


def test_without_balancing_they_do_not(found: dict[str, Any]) -> None:
    assert min(found["nothing"]["last"]) > 2
