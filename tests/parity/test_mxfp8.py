"""Emulated MXFP8 at every layout: quantised blocks are the same ones, so gradients are as on one rank."""

from typing import Any

import pytest
import torch
from harness import Outcome, collect_from_ranks, relative_difference, tiny_config, train_all
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from patience import PATIENCE

from megatron_ko.config import ParallelConfig, RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.experts import GroupedExperts
from megatron_ko.models.mxfp8.linear import Mxfp8Recipe, mxfp8_linear, mxfp8_linears
from megatron_ko.models.mxfp8.numbers import E4M3
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything

EXPERTS = {"num_experts": 4, "top_k": 2, "shared_ffn_hidden_size": 64}
MOE = {"family": "mixtral", "num_layers": 2, "moe": EXPERTS}
# Layouts of two ranks, and how far the gradient of any parameter may be. Where expert parallelism brings an expert the
# tokens of two micro-batches at once, blocks over tokens are others than on one rank, by the nature of the format.
# Between tensor-parallel ranks the tokens are those of one micro-batch, in the same order.
# Sums in another order differ in their last bit, and once in a while that bit decides how a number is rounded to eight
# bits: one such number moves gradients by 1e-3. It does so for one seed, blocks cut elsewhere would do so for all.
SEEDS = (1, 2, 3)
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "tp2": ({}, {"tensor": 2}, 1e-5),
    "tp2-sequence": ({}, {"tensor": 2, "sequence_parallel": True}, 1e-5),
    "pp2": ({}, {"pipeline": 2}, 1e-5),
    "cp2": ({}, {"context": 2}, 1e-5),
    "dp2": ({}, {}, 1e-5),
    "moe-pp2": (MOE, {"pipeline": 2}, 1e-5),
    "moe-ep2": (MOE, {"expert": 2}, 3e-2),
    "moe-ep2-tp2": (MOE, {"tensor": 2, "expert": 2, "expert_tensor": 1, "sequence_parallel": True}, 1e-5),
}


def config_of(model: dict[str, Any], parallel: dict[str, Any], seed: int = 1, **precision: Any) -> RunConfig:
    emulated = {"recipe": "mxfp8", "mxfp8": {"emulate": True}}
    return tiny_config(
        parallel,
        model={"ffn_hidden_size": 128, **model},
        precision={"dtype": "fp32", **(emulated | precision)},
        run={"seed": seed},
        training={"micro_batch_size": 4},  # 32 tokens in each of the pieces that context parallelism deals out
    )


def train_together(configs: dict[str, RunConfig], world_size: int, steps: int) -> dict[str, Outcome]:
    return dict(zip(configs, train_all(list(configs.values()), world_size, steps), strict=True))


@pytest.fixture(scope="module")
def alone() -> dict[str, Outcome]:
    plain = {"recipe": "none", "mxfp8": {}}
    configs = {
        **{f"dense-{seed}": config_of({}, {}, seed) for seed in SEEDS},
        **{f"moe-{seed}": config_of(MOE, {}, seed) for seed in SEEDS},
        "plain": config_of({}, {}, **plain),
        "plain-moe": config_of(MOE, {}, **plain),
        "hybrid": config_of({}, {}, fp8_format="hybrid"),
        "scales-down": config_of({}, {}, mxfp8={"emulate": True, "scale_rounding": "down"}),
    }
    return train_together(configs, 1, 2)


@pytest.fixture(scope="module")
def spread() -> dict[str, Outcome]:
    configs = {
        f"{name}-{seed}": config_of(model, axes, seed) for name, (model, axes, _) in LAYOUTS.items() for seed in SEEDS
    }
    return train_together(configs, 2, 2)


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_do_not_depend_on_the_layout(
    name: str, alone: dict[str, Outcome], spread: dict[str, Outcome]
) -> None:
    model, _, tolerance = LAYOUTS[name]
    errors = []
    for seed in SEEDS:
        expected, got = alone[f"{'moe' if model else 'dense'}-{seed}"], spread[f"{name}-{seed}"]
        errors.append(max(relative_difference(got.gradients[key], value) for key, value in expected.gradients.items()))
        assert got.losses == pytest.approx(expected.losses, rel=1e-4)
    print(f"{name}: gradients of three seeds are apart by {', '.join(f'{error:.1e}' for error in errors)}")
    assert min(errors) < tolerance and max(errors) < 3e-2


def test_emulation_is_seen_in_every_gradient(alone: dict[str, Outcome]) -> None:
    """What the layouts are held to is far below what the format does."""
    for emulated, plain in (
        ("dense-1", "plain"),
        ("moe-1", "plain-moe"),
        ("hybrid", "dense-1"),
        ("scales-down", "dense-1"),
    ):
        for key, gradient in alone[plain].gradients.items():
            assert 1e-4 < relative_difference(alone[emulated].gradients[key], gradient) < 0.5, (emulated, key)


def layer_products(parallel: dict[str, Any]) -> list[torch.Tensor]:
    """Inside a rank: output and gradients of a column-parallel and a row-parallel layer, gathered by hand.

    Whole numbers, whose sums are exact in fp32 in whatever order.
    """
    config = ParallelConfig(**parallel)
    groups = initialise(config, timeout_s=PATIENCE)
    seed_everything(1, groups)
    linears = mxfp8_linears(Mxfp8Recipe(E4M3, "down"))
    settings = TransformerConfig(
        num_layers=1,
        hidden_size=64,
        num_attention_heads=4,
        tensor_model_parallel_size=groups.tp_size,
        sequence_parallel=config.sequence_parallel,
        add_bias_linear=False,
        init_method=torch.nn.init.zeros_,
    )
    common = {"config": settings, "init_method": torch.nn.init.zeros_, "bias": False, "tp_group": groups.pg.tp}
    column = linears.column(64, 128, gather_output=False, skip_bias_add=False, **common)
    row = linears.row(128, 64, input_is_parallel=True, skip_bias_add=True, **common)
    inputs, first, second, upstream = whole_numbers()
    share = slice(groups.tp_rank * 128 // groups.tp_size, (groups.tp_rank + 1) * 128 // groups.tp_size)
    with torch.no_grad():
        column.weight.copy_(first[share])
        row.weight.copy_(second[:, share])
    if config.sequence_parallel:
        inputs, upstream = (part.chunk(groups.tp_size)[groups.tp_rank] for part in (inputs, upstream))
    inputs.requires_grad_()
    inner, _ = column(inputs)
    output, _ = row(inner.detach().sign())  # whole numbers again
    output.backward(upstream)
    (row_gradient,) = (row.weight.grad,)
    inner.backward(whole_numbers()[3].repeat(1, 1, 2)[..., share])
    destroy()
    return [inner.detach(), output.detach(), inputs.grad, column.weight.grad, row_gradient]


def whole_numbers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input [s, b, h], two weights and a gradient [s, b, h], of many magnitudes below 128."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((32, 2, 64), (128, 64), (64, 128), (32, 2, 64))
    drawn = []
    for shape in shapes:
        magnitude = 2 ** torch.randint(1, 8, shape, generator=generator)
        drawn.append(torch.randint(-127, 128, shape, generator=generator).div(magnitude, rounding_mode="trunc").float())
    return drawn[0], drawn[1], drawn[2], drawn[3]


def products_everywhere(layouts: list[dict[str, Any]]) -> list[list[torch.Tensor]]:
    return [layer_products(parallel) for parallel in layouts]


def test_layers_are_exact_on_two_ranks() -> None:
    """Tensor parallelism with and without sequence parallelism: not one bit differs from plain products."""
    recipe = Mxfp8Recipe(E4M3, "down")
    inputs, first, second, upstream = whole_numbers()
    for tensor in (inputs, first, second):
        tensor.requires_grad_()
    inner = mxfp8_linear(inputs, first, recipe)
    output = mxfp8_linear(inner.detach().sign(), second, recipe)
    output.backward(upstream)
    inner.backward(upstream.repeat(1, 1, 2))
    layouts = [{"tensor": 2}, {"tensor": 2, "sequence_parallel": True}]
    ranks = collect_from_ranks(products_everywhere, 2, layouts)
    for case, parallel in enumerate(layouts):
        (inner_a, output_a, inputs_a, first_a, second_a), (inner_b, output_b, inputs_b, first_b, second_b) = (
            rank[case] for rank in ranks
        )
        assert torch.cat([inner_a, inner_b], dim=2).equal(inner)
        assert torch.cat([first_a, first_b]).equal(first.grad)
        assert torch.cat([second_a, second_b], dim=1).equal(second.grad)
        if "sequence_parallel" in parallel:
            assert torch.cat([output_a, output_b]).equal(output)
            assert torch.cat([inputs_a, inputs_b]).equal(inputs.grad)
        else:
            assert output_a.equal(output) and output_b.equal(output)
            assert inputs_a.equal(inputs.grad) and inputs_b.equal(inputs.grad)


def emulated_layers(config: RunConfig) -> dict[int, set[str]]:
    """Inside a rank: the classes that multiply, by number of the layer from 0; the rest of the model is -1."""
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(1, groups)
    kinds = (ColumnParallelLinear, RowParallelLinear, GroupedExperts)
    found: dict[int, set[str]] = {}
    for chunk in build_model(Blueprint.of(config), groups, config.run.seed):
        inside = {id(module): layer.layer_number - 1 for layer in chunk.decoder.layers for module in layer.modules()}
        for module in chunk.modules():
            if isinstance(module, kinds):
                found.setdefault(inside.get(id(module), -1), set()).add(type(module).__name__)
    destroy()
    return found


def list_layers(configs: list[RunConfig]) -> list[dict[int, set[str]]]:
    return [emulated_layers(config) for config in configs]


def test_high_layers_and_the_output_layer_are_left_alone() -> None:
    axes = {"pipeline": 2, "virtual_pipeline": 2}
    high = {"first_layers_high": 1, "last_layers_high": 1}
    experts = {**MOE, "num_layers": 4}
    configs = [config_of({}, {"pipeline": 2}, **high), config_of({}, axes, **high), config_of(experts, axes, **high)]
    ranks = collect_from_ranks(list_layers, 2, configs)
    plain = {"ColumnParallelLinear", "RowParallelLinear"}
    emulated = {"Mxfp8ColumnParallelLinear", "Mxfp8RowParallelLinear"}
    for case in range(len(configs)):
        layers = {number: names for rank in ranks for number, names in rank[case].items()}
        grouped = ({"GroupedExperts"}, {"Mxfp8Experts"}) if case == 2 else (set(), set())
        assert layers[-1] == {"ColumnParallelLinear"}
        assert layers[0] == layers[3] == plain | grouped[0]
        assert layers[1] == layers[2] == emulated | grouped[1]
