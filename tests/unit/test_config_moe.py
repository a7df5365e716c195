"""Checks of experts: what does not fit the router, the network or the ranks is refused with its remedy."""

from pathlib import Path

import pytest

from megatron_ko.config import RunConfig, check_world, load_config
from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.moe import moe_settings

RUN = """
run: {dir: out}
model:
  family: mixtral
  num_layers: 4
  hidden_size: 64
  ffn_hidden_size: 128
  num_attention_heads: 4
  vocab_size: 1000
  max_position_embeddings: 128
  moe: {num_experts: 8, top_k: 2}
precision: {dtype: fp32}
data: {tokenizer: tok, sources: [{prefix: shards/a}], sequence_length: 64}
optim: {lr: 3e-4}
training: {steps: 10, global_batch_size: 16}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def load(run_file: Path, *overrides: str) -> RunConfig:
    return load_config(run_file, overrides)


@pytest.mark.parametrize(
    ("overrides", "path", "remedy"),
    [
        (["parallel.expert=3"], "parallel.expert", "one of [1, 2, 4, 8]"),
        (["model.moe.top_k=9"], "model.moe.top_k", "model.moe.top_k=2"),
        (["model.moe.top_k=1"], "model.moe.softmax_before_topk", "model.moe.softmax_before_topk=true"),
        (["model.moe.expert_bias=true"], "model.moe.expert_bias", "model.moe.score=sigmoid"),
        (["model.moe.score=sigmoid", "model.moe.softmax_before_topk=true"], "model.moe.softmax_before_topk", "remove"),
        (["parallel.tensor=2"], "parallel.sequence_parallel", "parallel.sequence_parallel=true"),
        (["parallel.expert_tensor=3"], "parallel.expert_tensor", "one of [1, 2, 4"),
        (["parallel.dispatcher=flex"], "parallel.dispatcher", "parallel.dispatcher=alltoall"),
        (["model.moe.capacity_factor=0"], "model.moe.capacity_factor", None),
        (["model.family=llama", "model.moe=null", "parallel.expert=2"], "parallel.expert", "remove it"),
        (["model.family=llama", "model.moe=null", "parallel.expert_tensor=1"], "parallel.expert_tensor", "remove it"),
        (["model.family=llama", "model.moe=null", "parallel.dispatcher=allgather"], "parallel.dispatcher", "remove"),
    ],
)
def test_what_does_not_fit_is_refused(run_file: Path, overrides: list[str], path: str, remedy: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        load(run_file, *overrides)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert text.startswith("1 problem in") and f"{path}\n" in text and (remedy or "") in text


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.moe.top_k=8"],
        ["model.moe.top_k=1", "model.moe.softmax_before_topk=true"],
        ["model.moe.top_k=1", "model.moe.score=sigmoid", "model.moe.expert_bias=true"],
        ["parallel.expert=4", "parallel.expert_tensor=2", "parallel.dispatcher=flex"],
        ["parallel.tensor=2", "parallel.sequence_parallel=true", "parallel.expert_tensor=1"],
        ["model.moe.capacity_factor=1.25", "parallel.dispatcher=allgather"],
    ],
)
def test_what_fits_is_accepted(run_file: Path, overrides: list[str]) -> None:
    load(run_file, *overrides)


def test_experts_divide_over_the_ranks_of_a_stage(run_file: Path) -> None:
    config = load(run_file, "parallel.pipeline=2", "parallel.expert=4")
    assert not check_world(config, 8) and not check_world(config, 16)
    (problem,) = check_world(config, 4)
    assert problem.path == "parallel.expert" and "the 2 ranks of a pipeline stage" in problem.expected
    assert problem.remedy == "parallel.expert one of [1, 2]"
    over_tensors = load(run_file, "parallel.tensor=2", "parallel.sequence_parallel=true", "parallel.expert=2")
    (problem,) = check_world(over_tensors, 2)
    assert problem.got == "expert 2 x expert_tensor 2" and problem.remedy == "parallel.expert one of [1]"
    alone = load(run_file, "parallel.expert=2", "parallel.expert_tensor=2")
    (problem,) = check_world(alone, 1)
    assert problem.remedy == "parallel.expert_tensor=1, or a multiple of 4 ranks"


def test_layouts_that_are_offered_fit_the_experts(run_file: Path) -> None:
    config = load(run_file, "parallel.pipeline=4", "parallel.expert=2", "parallel.expert_tensor=1")
    (problem,) = check_world(config, 6)
    assert problem.remedy is not None and "a multiple of 8" in problem.remedy
    assert "tensor 1 x pipeline 1 x data 6 (expert 2)" in problem.remedy
    assert "pipeline 2" not in problem.remedy, "3 ranks of a stage cannot share experts in halves"


@pytest.mark.parametrize(
    ("overrides", "ranks"),
    [
        ([], 1),
        (["parallel.expert=4"], 4),
        (["parallel.expert=2", "parallel.pipeline=2"], 4),
        (["parallel.tensor=4", "parallel.sequence_parallel=true", "parallel.expert=2", "parallel.expert_tensor=1"], 4),
        (["parallel.tensor=2", "parallel.sequence_parallel=true", "parallel.expert=2"], 4),
    ],
)
def test_the_smallest_world_fits(run_file: Path, overrides: list[str], ranks: int) -> None:
    config = load(run_file, *overrides)
    assert config.parallel.smallest_world == ranks and not check_world(config, ranks)


def test_flex_without_deepep_is_refused_where_the_model_is_built(run_file: Path) -> None:
    config = load(run_file, "parallel.expert=2", "parallel.dispatcher=flex")
    with pytest.raises(ConfigError, match="deep_ep is not installed") as caught:
        moe_settings(Blueprint.of(config))
    assert "parallel.dispatcher=alltoall" in str(caught.value)


def test_every_field_reaches_megatron_core(run_file: Path) -> None:
    moe = "{num_experts: 8, top_k: 3, score: sigmoid, topk_scale: 2.5, shared_ffn_hidden_size: 96, aux_loss: sequence, "
    moe += "aux_loss_coeff: 0.02, z_loss_coeff: 0.001, expert_bias: true, expert_bias_update_rate: 0.01, "
    moe += "capacity_factor: 1.5}"
    settings = moe_settings(Blueprint.of(load(run_file, f"model.moe={moe}", "parallel.dispatcher=allgather")))
    assert settings == {
        "num_moe_experts": 8,
        "moe_ffn_hidden_size": 128,
        "moe_shared_expert_intermediate_size": 96,
        "moe_grouped_gemm": True,
        "moe_router_topk": 3,
        "moe_router_score_function": "sigmoid",
        "moe_router_pre_softmax": False,
        "moe_router_topk_scaling_factor": 2.5,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "seq_aux_loss",
        "moe_aux_loss_coeff": 0.02,
        "moe_z_loss_coeff": 0.001,
        "moe_router_enable_expert_bias": True,
        "moe_router_bias_update_rate": 0.01,
        "moe_expert_capacity_factor": 1.5,
        "moe_token_dispatcher_type": "allgather",
        "moe_router_padding_for_quantization": False,
    }
    for overrides in (["model.moe.aux_loss=none"], ["model.moe.aux_loss_coeff=0"]):
        settings = moe_settings(Blueprint.of(load(run_file, *overrides)))
        assert settings["moe_router_load_balancing_type"] == "none" and settings["moe_aux_loss_coeff"] == 0
