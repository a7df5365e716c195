"""Recipes: what megatron-core is told and accepts, and which machine can run them."""

from pathlib import Path
from typing import Any

import pytest
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig

from megatron_ko.config import RunConfig
from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.precision import (
    NEEDS,
    data_parallel_settings,
    optimizer_settings,
    precision_settings,
    recipe_settings,
    why_not,
)
from megatron_ko.parallel.platform import get_platform

NOWHERE = Path("nowhere")
HOPPER, BLACKWELL, NEW = (9, 0), (10, 0), "2.8.0+c47f329"


def run_config(recipe: str, **precision: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"dir": NOWHERE},
            "model": {
                "num_layers": 8,
                "hidden_size": 64,
                "ffn_hidden_size": 128,
                "num_attention_heads": 4,
                "vocab_size": 100,
                "max_position_embeddings": 64,
            },
            "precision": {"recipe": recipe, **precision},
            "data": {"tokenizer": NOWHERE, "sources": ({"prefix": NOWHERE},), "sequence_length": 64},
            "optim": {"lr": 1e-3},
            "training": {"steps": 10, "global_batch_size": 4},
        }
    )


def built(config: RunConfig) -> TransformerConfig:
    """The fields as megatron-core leaves them after its own checks."""
    return TransformerConfig(
        num_layers=config.model.num_layers,
        hidden_size=64,
        num_attention_heads=4,
        **recipe_settings(Blueprint.of(config)),
    )


@pytest.mark.parametrize(
    ("recipe", "name", "gradients"),
    [
        ("fp8_delayed", "delayed", "hybrid"),
        ("fp8_current", "tensorwise", "hybrid"),
        ("fp8_blockwise", "blockwise", "e4m3"),
        ("mxfp8", "mxfp8", "e4m3"),
    ],
)
def test_megatron_core_accepts_every_8_bit_recipe(recipe: str, name: str, gradients: str) -> None:
    accepted = built(run_config(recipe))
    assert (accepted.fp8, accepted.fp8_recipe, accepted.fp8_param, accepted.fp4) == (gradients, name, False, None)
    assert accepted.first_last_layers_bf16 is False and accepted.fp8_wgrad is True
    other = "e4m3" if gradients == "hybrid" else "hybrid"
    assert built(run_config(recipe, fp8_format=other, fp8_weights=True)).fp8 == other
    assert built(run_config(recipe, fp8_weights=True)).fp8_param is True
    assert accepted.fp8_amax_history_len == (1024 if recipe == "fp8_delayed" else 1)


def test_megatron_core_accepts_nvfp4() -> None:
    accepted = built(run_config("nvfp4", first_layers_high=1, last_layers_high=2))
    assert (accepted.fp8, accepted.fp4, accepted.fp4_recipe) == (None, "e2m1", "nvfp4")
    assert (accepted.num_layers_at_start_in_bf16, accepted.num_layers_at_end_in_bf16) == (1, 2)


@pytest.mark.parametrize("recipe", ["fp8_current", "mxfp8"])
def test_high_layers_are_counted_from_both_ends(recipe: str) -> None:
    accepted = built(run_config(recipe, first_layers_high=2))
    assert accepted.first_last_layers_bf16 is True
    assert (accepted.num_layers_at_start_in_bf16, accepted.num_layers_at_end_in_bf16) == (2, 0)
    config = run_config(recipe, first_layers_high=2, last_layers_high=1)
    assert [config.precision.is_high(layer, 8) for layer in range(8)] == [True] * 2 + [False] * 5 + [True]


def test_without_a_recipe_or_emulated_megatron_core_is_told_nothing() -> None:
    for config in (run_config("none"), run_config("mxfp8", mxfp8={"emulate": True}, last_layers_high=1)):
        assert precision_settings(Blueprint.of(config)) == recipe_settings(Blueprint.of(config)) == {}
        assert data_parallel_settings(config.precision) == optimizer_settings(config.precision) == {}


@pytest.mark.parametrize("recipe", ["fp8_delayed", "fp8_current", "fp8_blockwise", "mxfp8"])
def test_weights_in_8_bits_are_told_to_all_who_touch_them(recipe: str) -> None:
    precision = run_config(recipe, fp8_weights=True).precision
    wrapper = DistributedDataParallelConfig(use_distributed_optimizer=True, **data_parallel_settings(precision))
    optimizer = OptimizerConfig(lr=1e-3, bf16=True, use_distributed_optimizer=True, **optimizer_settings(precision))
    shared = recipe == "mxfp8"
    assert wrapper.fp8_param_gather and wrapper.reuse_grad_buf_for_mxfp8_param_ag is shared
    assert optimizer.reuse_grad_buf_for_mxfp8_param_ag is shared
    assert optimizer.fp8_recipe == NEEDS[recipe].engine_name


@pytest.mark.parametrize(
    ("capability", "engine", "possible"),
    [
        (None, NEW, set()),
        ((8, 0), NEW, set()),
        ((8, 9), NEW, {"fp8_delayed", "fp8_current"}),
        (HOPPER, NEW, {"fp8_delayed", "fp8_current", "fp8_blockwise"}),
        (HOPPER, "2.2.0", {"fp8_delayed", "fp8_current"}),
        (HOPPER, "1.13.0", {"fp8_delayed"}),
        (HOPPER, None, set()),
        (BLACKWELL, NEW, {"fp8_delayed", "fp8_current", "fp8_blockwise", "mxfp8", "nvfp4"}),
        ((10, 3), "2.6.0.dev0", {"fp8_delayed", "fp8_current", "fp8_blockwise", "mxfp8"}),
        ((12, 0), "2.10.1", {"fp8_delayed", "fp8_current", "fp8_blockwise", "nvfp4"}),
    ],
)
def test_what_a_machine_can_run(capability: tuple[int, int] | None, engine: str | None, possible: set[str]) -> None:
    assert {recipe for recipe in NEEDS if why_not(recipe, capability, engine) is None} == possible


def test_the_reason_names_the_device_and_what_is_needed() -> None:
    assert why_not("mxfp8", HOPPER, NEW) == "the device is sm_90, and the recipe needs sm_100 to sm_11x"
    assert why_not("fp8_blockwise", (8, 9), NEW) == "the device is sm_89, and the recipe needs sm_90 or later"
    assert "pip install" in str(why_not("mxfp8", BLACKWELL, None))
    assert why_not("nvfp4", BLACKWELL, "2.5.0") == "Transformer Engine is 2.5.0, and the recipe needs 2.7"


class Hopper:
    """A machine that is not this one."""

    compute_capability, device_name = HOPPER, "NVIDIA H200"


def test_a_recipe_that_cannot_run_is_refused_with_those_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_ko.models.precision.get_platform", Hopper)
    monkeypatch.setattr("megatron_ko.models.precision.transformer_engine_release", lambda: NEW)
    with pytest.raises(ConfigError) as caught:
        precision_settings(Blueprint.of(run_config("mxfp8")))
    assert caught.value.exit_code == 2
    told = str(caught.value)
    assert "sm_90" in told and "NVIDIA H200" in told and "emulate=true" in told
    assert "none, fp8_delayed, fp8_current, fp8_blockwise, mxfp8 emulated" in told
    assert precision_settings(Blueprint.of(run_config("fp8_blockwise")))["fp8_recipe"] == "blockwise"


def test_on_a_cpu_every_recipe_is_refused_but_emulation() -> None:
    if get_platform().device_type != "cpu":
        pytest.skip("a CUDA device is here")
    for recipe in NEEDS:
        with pytest.raises(ConfigError, match="no CUDA device"):
            precision_settings(Blueprint.of(run_config(recipe)))
