"""Precision: every combination that cannot work is refused, with what would."""

from pathlib import Path

import pytest
from refusals import problems

from megatron_ko.config import RunConfig, load_config
from megatron_ko.errors import ConfigError

ROOT = Path(__file__).parents[2]
BASE = """
run: {dir: out}
model: {num_layers: 8, hidden_size: 128, ffn_hidden_size: 256, num_attention_heads: 4, num_query_groups: 2,
        vocab_size: 1000, max_position_embeddings: 128}
data: {tokenizer: tok, sources: [{prefix: shards/a}], sequence_length: 64}
optim: {lr: 3e-4}
training: {steps: 100, global_batch_size: 8, micro_batch_size: 2}
"""
EMULATED = ("precision.recipe=mxfp8", "precision.mxfp8.emulate=true")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("precision.last_layers_high=1", "precision.first_layers_high=7"),
        ("precision.recipe=fp8_delayed", "precision.fp8_format=e4m3", "precision.fp8_weights=true"),
        ("precision.recipe=fp8_current", "precision.first_layers_high=1", "precision.last_layers_high=1"),
        (
            "precision.recipe=mxfp8",
            "precision.fp8_weights=true",
            "parallel.tensor=2",
            "parallel.sequence_parallel=true",
        ),
        ("precision.recipe=nvfp4", "precision.last_layers_high=4", "parallel.pipeline=2"),
        (*EMULATED, "precision.dtype=fp32", "precision.backend=portable", "precision.mxfp8.scale_rounding=down"),
        (*EMULATED, "precision.first_layers_high=3", "parallel.pipeline=4", "precision.fp8_format=hybrid"),
    ],
)
def test_what_works_is_accepted(run_file: Path, overrides: tuple[str, ...]) -> None:
    assert isinstance(load_config(run_file, overrides), RunConfig)


@pytest.mark.parametrize(
    ("overrides", "path", "told"),
    [
        (("model.hidden_size=144",), "model.hidden_size", "a width of 128 or 160"),
        (("model.ffn_hidden_size=240",), "model.ffn_hidden_size", "a width of 224 or 256"),
        (("model.ffn_hidden_size=288", "parallel.tensor=2"), "model.ffn_hidden_size", "144 on each of 2 ranks"),
        (("model.head_dim=12",), "model.num_attention_heads", "all query heads: 48"),
        (("model.head_dim=12", "model.num_query_groups=4"), "model.num_query_groups", "queries, keys and values: 144"),
        (
            ("model.head_dim=16", "parallel.tensor=4", "model.num_query_groups=4"),
            "model.num_attention_heads",
            "at most 2",
        ),
        (("data.sequence_length=60",), "data.sequence_length", "micro-batches of 120 tokens"),
        (
            (
                "data.sequence_length=32",
                "parallel.tensor=4",
                "parallel.sequence_parallel=true",
                "model.num_query_groups=4",
            ),
            "data.sequence_length",
            "16 on each of 4 ranks",
        ),
    ],
)
@pytest.mark.parametrize("emulate", ["true", "false"])
def test_mxfp8_needs_multiples_of_32(
    run_file: Path, overrides: tuple[str, ...], path: str, told: str, emulate: str
) -> None:
    message = problems(run_file, "precision.recipe=mxfp8", f"precision.mxfp8.emulate={emulate}", *overrides)
    assert f"\n  {path}\n" in message and told in message and "multiple of 32" in message and "remedy" in message
    load_config(run_file, overrides)  # without the recipe it is nobody's problem


@pytest.mark.parametrize(
    ("overrides", "path", "told"),
    [
        (("model.ffn_hidden_size=176", "parallel.expert_tensor=1"), "model.ffn_hidden_size", "a width of 160 or 192"),
        (("model.ffn_hidden_size=192", "parallel.tensor=2"), None, ""),
        (
            ("model.ffn_hidden_size=96", "parallel.tensor=2", "parallel.sequence_parallel=true"),
            "model.ffn_hidden_size",
            "48 on each of 2 ranks",
        ),
        (("model.moe.shared_ffn_hidden_size=80",), "model.moe.shared_ffn_hidden_size", "the shared expert: 80"),
    ],
)
def test_experts_need_them_too(run_file: Path, overrides: tuple[str, ...], path: str | None, told: str) -> None:
    moe = ("model.family=mixtral", "model.moe.num_experts=4", "model.moe.top_k=2", "parallel.sequence_parallel=true")
    moe = moe if any("parallel.tensor=" in override for override in overrides) else moe[:-1]
    words = (*EMULATED, *moe, *overrides)
    if path is None:
        load_config(run_file, words)
    else:
        message = problems(run_file, *words)
        assert f"\n  {path}\n" in message and told in message


def test_fp8_needs_multiples_of_16(run_file: Path) -> None:
    assert "multiple of 16" in problems(run_file, "precision.recipe=fp8_current", "model.ffn_hidden_size=248")
    load_config(run_file, ("precision.recipe=fp8_current", "model.ffn_hidden_size=240", "data.sequence_length=60"))


@pytest.mark.parametrize(
    ("overrides", "path", "told"),
    [
        (("precision.recipe=nvfp4", "precision.fp8_format=e4m3"), "precision.fp8_format", "a recipe with 8 bits"),
        ((*EMULATED, "precision.fp8_weights=true"), "precision.fp8_weights", "not emulated"),
        (
            ("precision.recipe=mxfp8", "precision.mxfp8.scale_rounding=down"),
            "precision.mxfp8.scale_rounding",
            "precision.mxfp8.emulate=true",
        ),
        ((*EMULATED, "precision.backend=transformer_engine"), "precision.mxfp8.emulate", "precision.backend=auto"),
        (("precision.recipe=mxfp8", "precision.backend=portable"), "precision.recipe", "mxfp8.emulate=true"),
        (("precision.recipe=fp8_current", "precision.backend=portable"), "precision.recipe", "precision.backend=auto"),
        (("precision.recipe=fp8_current", "precision.dtype=fp16"), "precision.dtype", "precision.dtype=bf16"),
        ((*EMULATED, "precision.dtype=fp16"), "precision.dtype", "bf16 or fp32"),
        (("precision.recipe=mxfp8", "precision.dtype=fp32"), "precision.dtype", "precision.dtype=bf16"),
        (
            (*EMULATED, "precision.first_layers_high=4", "precision.last_layers_high=4"),
            "precision.first_layers_high",
            "fewer than num_layers 8",
        ),
        (
            ("precision.recipe=fp8_delayed", "precision.first_layers_high=1"),
            "precision.recipe",
            "precision.recipe=fp8_current",
        ),
        (
            ("precision.recipe=mxfp8", "precision.first_layers_high=3", "parallel.pipeline=4"),
            "precision.first_layers_high",
            "precision.first_layers_high=2",
        ),
        (
            ("precision.recipe=mxfp8", "precision.fp8_weights=true", "parallel.distributed_optimizer=false"),
            "precision.fp8_weights",
            "distributed_optimizer=true",
        ),
        (
            (
                "precision.recipe=mxfp8",
                "precision.fp8_weights=true",
                "parallel.overlap_grad_reduce=true",
                "parallel.overlap_param_gather=true",
            ),
            "precision.fp8_weights",
            "overlap_param_gather=false",
        ),
    ],
)
def test_combinations_that_cannot_work(run_file: Path, overrides: tuple[str, ...], path: str, told: str) -> None:
    message = problems(run_file, *overrides)
    assert f"\n  {path}\n" in message and told in message


@pytest.mark.parametrize(("cluster", "recipe"), [("h200", "fp8_current"), ("b200", "mxfp8")])
def test_clusters_have_their_recipe_and_can_do_without(run_file: Path, cluster: str, recipe: str) -> None:
    run_file.write_text(f"extends: {ROOT / 'configs/clusters' / cluster}.yaml\n{BASE}")
    assert load_config(run_file).precision.recipe == recipe
    assert load_config(run_file, ["precision.recipe=none"]).precision.recipe == "none"


@pytest.mark.parametrize(
    "precision",
    [("precision.backend=portable",), ("precision.recipe=mxfp8", "precision.mxfp8.emulate=true")],
    ids=["asked for", "to emulate"],
)
def test_portable_layers_do_not_offload(run_file: Path, precision: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"training\.offload_layers(.|\n)*with portable layers"):
        load_config(run_file, (*precision, "training.offload_layers=1"))


def test_all_problems_are_told_at_once(run_file: Path) -> None:
    message = problems(run_file, "precision.recipe=mxfp8", "model.ffn_hidden_size=120", "precision.dtype=fp32")
    assert "model.ffn_hidden_size" in message and "precision.dtype" in message and "2 problems" in message


def test_gradients_have_the_format_that_the_recipe_is_made_for(run_file: Path) -> None:
    for recipe, expected in (("fp8_delayed", "hybrid"), ("fp8_current", "hybrid"), ("mxfp8", "e4m3")):
        config = load_config(run_file, [f"precision.recipe={recipe}"])
        assert config.precision.gradient_format == expected
    assert load_config(run_file, [*EMULATED, "precision.fp8_format=hybrid"]).precision.gradient_format == "hybrid"


def test_emulation_is_at_home_in_the_portable_layers(run_file: Path) -> None:
    assert load_config(run_file, EMULATED).precision.layer_backend == "portable"
    assert load_config(run_file, ["precision.recipe=mxfp8"]).precision.layer_backend == "auto"


@pytest.mark.parametrize(
    ("overrides", "summary"),
    [
        ((), "bf16"),
        (EMULATED, "bf16 with mxfp8, gradients e4m3, emulated with scales rounded up"),
        (
            ("precision.recipe=fp8_current", "precision.fp8_weights=true", "precision.last_layers_high=2"),
            "bf16 with fp8_current, gradients e5m2, weights in 8 bits, 0 first and 2 last layers high",
        ),
        (("precision.recipe=nvfp4",), "bf16 with nvfp4"),
    ],
)
def test_a_run_tells_its_recipe(run_file: Path, overrides: tuple[str, ...], summary: str) -> None:
    assert load_config(run_file, overrides).precision.summary == summary
