"""What the checks say about windows, documents and sequences that ranks share."""

from pathlib import Path
from typing import Any

import pytest

from megatron_ko.config import RunConfig
from megatron_ko.config.checks.attention import check_attention
from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.context_parallel import check_exchange

MODEL = {
    "family": "qwen3",
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "vocab_size": 100,
    "max_position_embeddings": 96,
}
DYNAMIC = {"scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 48}}


def config(**sections: dict[str, Any]) -> RunConfig:
    data = {"tokenizer": Path("tokenizer"), "sources": ({"prefix": Path("corpus")},), "sequence_length": 48}
    return RunConfig.model_validate(
        {
            "run": {"dir": Path("run")},
            "model": MODEL | sections.get("model", {}),
            "parallel": sections.get("parallel", {}),
            "precision": sections.get("precision", {}),
            "data": data | sections.get("data", {}),
            "optim": {"lr": 1e-3},
            "training": {"steps": 10, "global_batch_size": 4},
        }
    )


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"parallel": {"context": 2}},
        {"parallel": {"context": 2, "context_exchange": "p2p"}},
        {"parallel": {"context": 2, "tensor": 2, "context_exchange": "a2a"}, "model": {"windows": (4, None)}},
        {"parallel": {"context": 4}, "model": {"windows": (4, None)}, "data": {"document_mask": True}},
        {"model": {"attention_dropout": 0.1}},
        {"model": {"attention_dropout": 0.1, "windows": (4, 4)}, "precision": {"backend": "transformer_engine"}},
        {"model": {"rope": DYNAMIC}, "data": {"document_mask": True}},
        {"model": {"rope": DYNAMIC}, "data": {"sequence_length": 96}},
    ],
)  # fmt: skip
def test_what_can_work_is_let_through(sections: dict[str, Any]) -> None:
    assert not list(check_attention(config(**sections)))


@pytest.mark.parametrize(
    ("sections", "path", "words"),
    [
        ({"parallel": {"context": 5}}, "parallel.context", "one of [1, 2, 3, 4, 6, 8], or data.sequence_length=50"),
        (
            {"parallel": {"context": 2, "context_exchange": "a2a"}, "precision": {"backend": "portable"}},
            "parallel.context_exchange",
            "all_gather with portable layers",
        ),
        (
            {"parallel": {"context": 2, "context_exchange": "p2p"}, "model": {"windows": (None, 4)}},
            "parallel.context_exchange",
            "all_gather or a2a",
        ),
        (
            {"parallel": {"context": 8, "tensor": 1, "context_exchange": "a2a"}},
            "parallel.context_exchange",
            "4 key/value heads",
        ),
        (
            {"model": {"attention_dropout": 0.1, "windows": (4, 4)}, "data": {"document_mask": True}},
            "model.attention_dropout",
            "model.windows and data.document_mask",
        ),
        ({"model": {"attention_dropout": 0.1}, "parallel": {"context": 2}}, "model.attention_dropout", "parallel.con"),
        (
            {"model": {"rope": DYNAMIC}, "data": {"document_mask": True, "sequence_length": 96}},
            "data.document_mask",
            "at most 48",
        ),
        (
            {
                "parallel": {"context": 2},
                "data": {"document_mask": True},
                "precision": {"backend": "transformer_engine"},
            },
            "data.document_mask",
            "precision.backend=portable",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_a_remedy(sections: dict[str, Any], path: str, words: str) -> None:
    (problem,) = check_attention(config(**sections))
    assert problem.path == path and words in str(problem)


def test_what_only_the_machine_decides_is_refused_when_the_model_is_built() -> None:
    ring = config(parallel={"context": 2, "context_exchange": "p2p"})
    documents = config(parallel={"context": 2}, data={"document_mask": True})
    check_exchange(Blueprint.of(ring), transformer_engine=True)
    check_exchange(Blueprint.of(documents), transformer_engine=False)
    check_exchange(Blueprint.of(config(parallel={"context_exchange": "p2p"})), transformer_engine=False)
    for refused, engine in ((ring, False), (documents, True)):
        with pytest.raises(ConfigError) as caught:
            check_exchange(Blueprint.of(refused), transformer_engine=engine)
        assert caught.value.exit_code == 2 and caught.value.remedy
