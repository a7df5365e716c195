"""The commented run file, in both languages: the same run, and one that trains."""

import json
from pathlib import Path

from train_runs import ROOT, Run

from megatron_ko.config import load_config
from megatron_ko.plan.params import count_parameters

FILES = (ROOT / "configs/runs/my-run.yaml", ROOT / "configs/runs/my-run.ko.yaml")


def test_both_languages_describe_the_same_run() -> None:
    english, korean = map(load_config, FILES)
    assert english == korean
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert [line.split("#")[0].rstrip() for line in text.splitlines()] == [
            line.split("#")[0].rstrip() for line in FILES[0].read_text(encoding="utf-8").splitlines()
        ]


def test_the_figures_of_its_comments_are_right() -> None:
    config = load_config(FILES[0])
    assert round(count_parameters(config.model).total / 1e6) == 40
    assert config.model.vocab_size * config.model.hidden_size == 16_384_000
    tokens = config.training.steps * config.training.global_batch_size * config.data.sequence_length
    assert round(tokens / 1e9, 2) == 0.66


def test_it_trains_once_its_marked_values_are_changed(tiny: Path, tmp_path: Path) -> None:
    source = json.dumps([{"prefix": str(tiny / "corpus")}])
    marked = (f"data.tokenizer={tiny}/tokenizer", f"data.sources={source}", "model.vocab_size=600")
    small = (
        *("model.num_layers=1", "model.hidden_size=64", "model.ffn_hidden_size=64", "model.num_attention_heads=4"),
        *("data.split=[90,10,0]", "data.sequence_length=32", "eval.samples=8", "training.global_batch_size=8"),
        *("training.steps=2", "optim.warmup_steps=1", "launch.ranks_per_node=1", "launch.threads_per_rank=1"),
    )
    ended = Run(FILES[0], tmp_path / "run", (*marked, *small)).train()
    assert ended.returncode == 0, ended.stderr
