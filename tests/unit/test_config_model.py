"""Checks of families, windows, rotary scalings and pipeline stages: each bad value is refused with its remedy."""

from pathlib import Path
from typing import Any

import pytest
from refusals import RUN, problems

from megatron_ko.config import ModelConfig, ParallelConfig, check_world, load_config, load_model_config
from megatron_ko.config.checks.layout import stage_layers, tensor_sizes
from megatron_ko.errors import ConfigError

MOE = "model.moe={num_experts: 4, top_k: 2}"
YARN = "type: yarn, factor: 4.0, original_max_position_embeddings: 32"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.family=mixtral"], "model.moe={num_experts: 8, top_k: 2}"),
        ([MOE], "model.family=mixtral"),
        (["model.family=qwen3", MOE], "model.family=qwen3_moe"),
        (["model.family=keural", MOE], "or model.family=mixtral"),
        (["model.windows=[8,8,8,8]"], "family llama has full attention"),
        (["model.family=qwen3", "model.windows=[8,null]"], "[8, null, 8, null]"),
        (["model.family=qwen3", "model.windows=[]"], "[512, 512, 512, 512]"),
        (["model.family=qwen3", "model.windows=[8,0,8,8]"], "at least 1, or null"),
        (["model.family=mixtral", MOE, "model.windows=[8,null,8,8]"], "model.family=keural"),
        (["model.head_dim=15"], "an even number"),
    ],
)
def test_families_have_what_they_need(run_file: Path, overrides: list[str], expected: str) -> None:
    assert expected in problems(run_file, *overrides)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("{type: yarn, factor: 4.0}", "model.rope.scaling.original_max_position_embeddings=32768"),
        ("{type: yran, factor: 4.0}", "did you mean 'yarn'?"),
        ("{factor: 4.0}", "one of linear, ntk, dynamic, yarn, llama3"),
        ("{type: linear, factr: 4.0}", "did you mean 'model.rope.scaling.factor'?"),
        ("{type: linear, factor: 0.5}", "model.rope.scaling.factor"),
        ("{type: yarn, factor: 2.0, original_max_position_embeddings: 32}", "model.rope.scaling.factor=4"),
        ("{type: yarn, factor: 2.0, original_max_position_embeddings: 128}", "model.max_position_embeddings=256"),
        ("{type: dynamic, factor: 2.0, original_max_position_embeddings: 128}", "model.max_position_embeddings=256"),
        (f"{{{YARN}, mscale: 1.0}}", "both or neither"),
        (f"{{{YARN}, beta_fast: 1.0}}", "more than beta_slow 1"),
        (
            "{type: llama3, factor: 8.0, original_max_position_embeddings: 32, low_freq_factor: 4.0}",
            "more than low_freq_factor 4",
        ),
    ],
)
def test_scalings_that_contradict_themselves(run_file: Path, scaling: str, expected: str) -> None:
    assert expected in problems(run_file, f"model.rope.scaling={scaling}")


def test_scalings_that_fit(run_file: Path) -> None:
    for scaling in (
        f"{{{YARN}}}",
        f"{{{YARN}, mscale: 1.0, mscale_all_dim: 0.5}}",
        "{type: linear, factor: 4}",
        "{type: llama3, factor: 2.0, original_max_position_embeddings: 32}",
    ):
        load_config(run_file, [f"model.rope.scaling={scaling}"])


def test_a_model_file_alone_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    model = "\n".join(line.strip() for line in RUN.splitlines()[3:10])
    for addition, part in (
        ("windows: [1, 2]", r"model\.windows"),
        ("family: mixtral\nmoe: {num_experts: 4, top_k: 5}", r"model\.moe\.top_k"),
    ):
        path.write_text(f"{model}\n{addition}\n")
        with pytest.raises(ConfigError, match=part):
            load_model_config(path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["parallel.pipeline=4", "parallel.virtual_pipeline=2"], "parallel.pipeline one of [2]"),
        (["parallel.pipeline=2", "parallel.first_stage_layers=4"], "parallel.pipeline=1"),
        (["parallel.pipeline=3", "parallel.first_stage_layers=1"], "parallel.pipeline one of [2, 4]"),
        (["parallel.pipeline=2", "parallel.loss_as_layer=true"], "num_layers 4 + the loss"),
        (
            ["parallel.pipeline=2", "parallel.loss_as_layer=true", "parallel.last_stage_layers=1"],
            "set the stages explicitly",
        ),
    ],
)
def test_stages_that_do_not_fit(run_file: Path, overrides: list[str], expected: str) -> None:
    assert expected in problems(run_file, *overrides)


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"pipeline": 4}, [8, 8, 8, 8]),
        ({"pipeline": 4, "first_stage_layers": 5}, [5, 9, 9, 9]),
        ({"pipeline": 4, "first_stage_layers": 7, "last_stage_layers": 5}, [7, 10, 10, 5]),
        ({"pipeline": 2, "first_stage_layers": 20, "last_stage_layers": 12}, [20, 12]),
        ({"pipeline": 2, "first_stage_layers": 20, "last_stage_layers": 11}, None),
        ({"pipeline": 2, "embedding_as_layer": True, "loss_as_layer": True}, [17, 17]),
        ({"pipeline": 3, "loss_as_layer": True}, [11, 11, 11]),
        ({"pipeline": 4, "virtual_pipeline": 4}, [8, 8, 8, 8]),
        ({"pipeline": 4, "virtual_pipeline": 3}, None),
    ],
)
def test_layers_of_stages(change: dict[str, Any], stages: list[int] | None) -> None:
    assert stage_layers(ParallelConfig(**change), 32) == stages


@pytest.mark.parametrize(
    ("heads", "groups", "sizes"),
    # With 5 key/value heads (MOAI), 10 ranks share each between two; 15 would split the fused projection unevenly.
    [(30, 5, [1, 5, 10]), (28, 4, [1, 2, 4]), (9, 3, [1, 3]), (32, 8, [1, 2, 4, 8, 16, 32])],
)
def test_tensor_sizes(heads: int, groups: int, sizes: list[int]) -> None:
    model = ModelConfig(
        num_layers=1,
        hidden_size=3840,
        ffn_hidden_size={9: 1536, 28: 28 * 512}.get(heads, 10240),
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=128,
        vocab_size=1000,
        max_position_embeddings=128,
    )
    assert tensor_sizes(model) == sizes


def test_experts_are_split_by_ranks_of_their_own(run_file: Path) -> None:
    moe = ["model.family=mixtral", MOE, "parallel.tensor=4", "model.ffn_hidden_size=66"]
    assert "parallel.expert_tensor\n" in problems(run_file, *moe)
    load_config(run_file, [*moe, "parallel.sequence_parallel=true", "parallel.expert_tensor=2"])


def test_layouts_that_fit_are_told_with_context(run_file: Path) -> None:
    (problem,) = check_world(load_config(run_file, ["parallel.context=2", "parallel.tensor=4"]), 12)
    assert "tensor 2 x pipeline 1 x context 2 x data 3" in str(problem)
