"""Overlapped communication and an offloaded optimizer: what megatron-core refuses is refused with the configuration."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from megatron_ko.config import RunConfig
from megatron_ko.config.validate import check
from megatron_ko.errors import ConfigError
from megatron_ko.models import overlap
from megatron_ko.models.architectures import transformer_config
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.train.optimizer import _offload

GOOD = {
    "run": {"dir": Path("run")},
    "model": {
        "family": "mixtral", "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 64, "num_attention_heads": 4,
        "vocab_size": 100, "max_position_embeddings": 64, "moe": {"num_experts": 4, "top_k": 2},
    },
    "parallel": {
        "tensor": 2, "sequence_parallel": True, "expert": 2, "expert_tensor": 1,
        "overlap_tensor": True, "overlap_experts": True,
    },
    "precision": {"dtype": "bf16"},
    "data": {"tokenizer": Path("t"), "sources": ({"prefix": Path("c")},), "sequence_length": 32},
    "optim": {"lr": 1e-3, "offload": 0.5},
    "training": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 2},
}  # fmt: skip


def config(**sections: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate({**GOOD, **{name: GOOD[name] | fields for name, fields in sections.items()}})


def paths(**sections: dict[str, Any]) -> list[str]:
    return [problem.path for problem in check(config(**sections))]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Transformer Engine's layers, as far as a configuration goes; the buffers that are asked for."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(overlap, "uses_transformer_engine", lambda backend: True)
    monkeypatch.setattr(overlap, "_allocate_buffers", lambda *sizes: asked.append(sizes))
    return asked


def test_megatron_core_takes_what_passes(engine: list[tuple[Any, ...]]) -> None:
    assert paths() == []
    settings = transformer_config(Blueprint.of(config()))
    assert settings.tp_comm_overlap and settings.overlap_moe_expert_parallel_comm
    assert engine == [(64, 64, 2, False)]


@pytest.mark.parametrize(
    "sections",
    [
        {"parallel": {"expert": 1}},
        {"parallel": {"dispatcher": "allgather"}},
        {"precision": {"dtype": "fp32"}},
        {"training": {"recompute": "full"}},
        {"parallel": {"pipeline": 2}},
    ],
)
def test_what_megatron_core_refuses_is_named_before(sections: dict[str, Any], engine: list[tuple[Any, ...]]) -> None:
    assert paths(**sections) == ["parallel.overlap_experts"]
    with pytest.raises(AssertionError):
        transformer_config(Blueprint.of(config(**sections)))


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"parallel": {"tensor": 1, "sequence_parallel": False, "overlap_experts": False}}, "parallel.overlap_tensor"),
        ({"precision": {"backend": "portable"}, "parallel": {"overlap_experts": False}}, "parallel.overlap_tensor"),
        ({"precision": {"backend": "portable"}, "parallel": {"overlap_tensor": False}}, "parallel.overlap_experts"),
        ({"parallel": {"distributed_optimizer": False}}, "optim.offload"),
    ],
)
def test_what_they_need_is_named(sections: dict[str, Any], path: str) -> None:
    assert paths(**sections) == [path]


def test_this_machine_says_that_it_cannot() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.overlap_tensor, parallel\.overlap_experts"):
        transformer_config(Blueprint.of(config()))
    with pytest.raises(ConfigError, match="host memory already"):
        _offload(0.5)


def test_another_shape_replaces_the_buffers_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine refuses to allocate them twice."""
    done: list[Any] = []
    base = ModuleType("transformer_engine.pytorch.module.base")
    vars(base).update(
        UserBufferQuantizationMode=SimpleNamespace(NONE="none", FP8="fp8"),
        initialize_ub=lambda shape, quantization_modes, **_: done.append((shape, quantization_modes)),
        destroy_ub=lambda: done.append("destroyed"),
    )
    monkeypatch.setitem(sys.modules, "transformer_engine", ModuleType("transformer_engine"))
    for name in ("transformer_engine.pytorch", "transformer_engine.pytorch.module"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setattr(overlap, "_allocated", [])
    for shape in ((64, 32, 2, False), (64, 32, 2, False), (128, 32, 2, True)):
        overlap._allocate_buffers(*shape)
    assert done == [([64, 32], ["none"]), "destroyed", ([128, 32], ["fp8", "none"])]
