"""Adapters in a configuration: what they cannot do is refused, with the way out."""

from pathlib import Path
from typing import Any

import pytest

from megatron_ko.config import RunConfig
from megatron_ko.config.validate import check
from megatron_ko.plan.params import trained_parameters
from megatron_ko.train.resume import differences

GOOD: dict[str, Any] = {
    "run": {"dir": Path("run")},
    "model": {
        "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 160, "num_attention_heads": 4, "num_query_groups": 2,
        "vocab_size": 100, "max_position_embeddings": 64,
    },
    "precision": {"dtype": "bf16"},
    "data": {"tokenizer": Path("t"), "sources": ({"prefix": Path("c")},), "sequence_length": 32},
    "optim": {"lr": 1e-3},
    "training": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 2},
    "checkpoint": {"start_from": Path("base")},
    "adapter": {"rank": 8},
}  # fmt: skip
EXPERTS = {"family": "mixtral", "moe": {"num_experts": 4, "top_k": 2}}
SHARED = {"family": "qwen3_moe", "moe": {"num_experts": 4, "top_k": 2, "shared_ffn_hidden_size": 32}}


def config(**sections: dict[str, Any]) -> RunConfig:
    merged = {name: {**GOOD.get(name, {}), **fields} for name, fields in sections.items()}
    return RunConfig.model_validate({**GOOD, **merged})


def test_what_passes() -> None:
    assert check(config()) == []
    assert check(config(model=EXPERTS)) == []
    assert check(config(model=EXPERTS, adapter={"kind": "dora", "targets": ("qkv", "proj")})) == []


@pytest.mark.parametrize(
    ("sections", "path", "remedy"),
    [
        ({"checkpoint": {"start_from": None}}, "checkpoint.start_from", "checkpoint.start_from=DIR"),
        ({"adapter": {"targets": ("qkv", "fc1", "qkv")}}, "adapter.targets", "adapter.targets=[qkv, fc1]"),
        ({"model": EXPERTS, "adapter": {"kind": "dora"}}, "adapter.kind", "adapter.kind=lora"),
        ({"model": EXPERTS, "adapter": {"rank": 12}}, "adapter.rank", "adapter.rank=16"),
        ({"model": SHARED}, "adapter.targets", "adapter.targets=[qkv, proj]"),
        (
            {"model": EXPERTS, "parallel": {"tensor": 2, "sequence_parallel": True}},
            "parallel.expert_tensor",
            "parallel.expert_tensor=1",
        ),
        ({"precision": {"recipe": "fp8_current"}}, "precision.recipe", "precision.recipe=none"),
        (
            {"parallel": {"tensor": 2, "sequence_parallel": True, "overlap_tensor": True}},
            "parallel.overlap_tensor",
            "parallel.overlap_tensor=false",
        ),
    ],
)
def test_what_is_refused(sections: dict[str, Any], path: str, remedy: str) -> None:
    (problem,) = [problem for problem in check(config(**sections)) if problem.path == path]
    assert problem.remedy.startswith(remedy)


def test_trained_parameters() -> None:
    hidden, keys, ffn, rank = 64, 32, 160, 8
    qkv, proj, fc1, fc2 = hidden + 64 + 2 * keys, 64 + hidden, hidden + 2 * ffn, ffn + hidden
    assert trained_parameters(config()) == 4 * rank * (qkv + proj + fc1 + fc2)
    assert trained_parameters(config(model=EXPERTS)) == 4 * rank * (qkv + proj + 4 * (fc1 + fc2))
    lengths = 4 * (64 + 2 * keys + hidden + 2 * ffn + hidden)
    assert trained_parameters(config(adapter={"kind": "dora"})) == trained_parameters(config()) + lengths


def test_a_section_that_was_left_out_is_not_the_same_as_its_defaults() -> None:
    adapter = {"kind": "lora", "rank": 16}
    assert differences({"adapter": None}, {"adapter": adapter}) == {
        "adapter.kind": (None, "lora"),
        "adapter.rank": (None, 16),
    }
    assert differences({}, {"adapter": adapter}).keys() == {"adapter.kind", "adapter.rank"}
    assert differences({"adapter": {"kind": "lora"}}, {"adapter": adapter}) == {}, "an option that is newer"
    assert differences({}, {"adapter": None}) == differences({"adapter": None}, {}) == {}
    assert differences({}, {"eval": {"samples": 0}}).keys() <= {"eval.samples"}
