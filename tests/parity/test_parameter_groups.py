"""optim.groups: factors of learning rate and decay by name, the same at every layout."""

import pytest
import torch
from harness import collect_from_ranks, micro_batches, tiny_config
from oracle import Pieces, assemble, pieces_of

from megatron_ko.config import RunConfig
from megatron_ko.errors import ConfigError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.parameter_policy import named_parameters
from megatron_ko.objectives import LanguageModelling
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.plan.params import count_parameters, padding_parameters
from megatron_ko.train.engine import build_engine
from megatron_ko.train.step import train_step

LR, DECAY = 1e-2, 0.5
LAYOUTS = {
    "one rank": (1, {}),
    "tensor 2": (2, {"tensor": 2}),
    "pipeline 2": (2, {"pipeline": 2}),
    "data 2": (2, {"distributed_optimizer": True}),
}
GROUPS = (
    {"match": "*", "lr_factor": 3.0},
    {"match": "embedding.*", "lr_factor": 0.0},
    {"match": "decoder.layers.1.*", "decay_factor": 0.0},
    {"match": "*.layer_norm_weight", "lr_factor": 2.0, "decay_factor": 9.0},
)


def config_with(parallel: dict[str, object], *groups: dict[str, object]) -> RunConfig:
    return tiny_config(parallel, model={"num_layers": 2}, optim={"groups": groups})


def train_two_steps(config: RunConfig) -> tuple[Pieces, Pieces, set[tuple[float, float]], dict[str, int]]:
    """Weights before and after, the (learning rate, decay) pairs in use, and the sizes of this rank's parameters."""
    groups = initialise(config.parallel, timeout_s=60)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    names = {name: parameter.numel() for name, parameter in named_parameters(chunks)}
    before = pieces_of(chunks)
    engine = build_engine(config, chunks, groups, LanguageModelling())
    for step in range(2):
        train_step(engine, micro_batches(config, groups, step), lr=LR, weight_decay=DECAY)
    used = {(group["lr"], group["weight_decay"]) for group in engine.optimizer.param_groups if group["params"]}
    after = pieces_of(chunks)
    destroy()
    return before, after, used, names


@pytest.fixture(scope="module")
def runs() -> dict[str, list[tuple[Pieces, Pieces, set[tuple[float, float]], dict[str, int]]]]:
    return {
        layout: collect_from_ranks(train_two_steps, world, config_with(parallel, *GROUPS))
        for layout, (world, parallel) in LAYOUTS.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_factors_reach_the_parameters_that_they_name(layout: str, runs: dict[str, list[tuple]]) -> None:
    ranks = runs[layout]
    before, after = (assemble(piece for rank in ranks for piece in rank[index]) for index in (0, 1))
    # By hand: the rest, the embedding, layer 1, its norms and those of layer 0, the last norm.
    expected = {(3 * LR, DECAY), (0.0, DECAY), (LR, 0.0), (2 * LR, 0.0), (3 * LR, 0.0)}
    assert set().union(*(rank[2] for rank in ranks)) == expected
    assert torch.equal(before.pop("embedding.word_embeddings.weight"), after["embedding.word_embeddings.weight"])
    for name, weights in before.items():
        assert not torch.equal(weights, after[name]), name


def test_names_do_not_depend_on_the_layout_and_cover_every_parameter_once(runs: dict[str, list[tuple]]) -> None:
    names = [{name for rank in ranks for name in rank[3]} for ranks in runs.values()]
    assert all(other == names[0] for other in names)
    assert {"decoder.layers.1.mlp.linear_fc2.weight", "decoder.layers.0.mlp.linear_fc1.layer_norm_weight"} < names[0]
    ((*_, sizes),) = runs["one rank"]
    model = config_with({}).model
    assert sum(sizes.values()) == count_parameters(model).total + padding_parameters(model)


def test_a_pattern_without_a_parameter_is_refused() -> None:
    (message,) = collect_from_ranks(refused, 1, config_with({}, {"match": "decoder.layers.2.*", "lr_factor": 0.5}))
    assert "decoder.layers.2.*" in message and "decoder.layers.*.mlp.linear_fc2.weight" in message


def refused(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as error:
        train_two_steps(config)
    return str(error.value)
