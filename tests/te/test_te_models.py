"""Every model and recipe is built by Transformer Engine's layers with the parameters of portable ones: keys, shapes,
types, initial values. Whatever is written by one back end can be read by the other."""

from dataclasses import dataclass

import pytest
import torch
from cases import MODELS, Sections
from engine import config_of, differences, portable, without_kernels
from harness import PATIENCE, collect_from_ranks
from megatron.core.dist_checkpointing.mapping import ShardedObject
from oracle import assemble, pieces_of

from megatron_ko.config import RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.fp8_weights import initial_values
from megatron_ko.models.parameter_policy import sharded_parts
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything


@dataclass(frozen=True)
class Built:
    """A model.

    Attributes:
        kinds: global shape and type of every parameter, by key.
        weights: initial values; of weights in 8 bits what they were cast from.
        used: initial values as the first step computes with them.
        states: keys of what else a checkpoint would hold.
        modules: names of the classes of its modules.
    """

    kinds: dict[str, tuple[tuple[int, ...], str]]
    weights: dict[str, torch.Tensor]
    used: dict[str, torch.Tensor]
    states: set[str]
    modules: set[str]


def build(config: RunConfig) -> Built:
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    with initial_values(chunks):
        weights = assemble(pieces_of(chunks))
    used = assemble(pieces_of(chunks))
    kinds = {part.key: (tuple(part.global_shape), str(part.dtype)) for part in sharded_parts(chunks)}
    states = {
        value.key
        for chunk in chunks
        for value in chunk.sharded_state_dict().values()
        if isinstance(value, ShardedObject)
    }
    modules = {type(module).__name__ for chunk in chunks for module in chunk.modules()}
    destroy()
    return Built(kinds, weights, used, states, modules)


def build_both(sections: Sections) -> tuple[Built, Built]:
    config = config_of(sections)
    engine = build(config)
    with without_kernels():
        return engine, build(portable(config))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_portable_layers(name: str) -> None:
    ((engine, other),) = collect_from_ranks(build_both, 1, MODELS[name])
    assert any(module.startswith("TE") for module in engine.modules)
    assert not any(module.startswith("TE") for module in other.modules)
    assert engine.kinds == other.kinds
    assert engine.weights.keys() == other.weights.keys()
    for key, weight in other.weights.items():
        assert engine.weights[key].equal(weight), key
    apart = {key: value for key, value in differences(engine.used, other.used).items() if value}
    in_8_bits = {key for key in other.weights if key.endswith(("linear_qkv.weight", "linear_proj.weight"))}
    in_8_bits |= {key for key in other.weights if key.endswith(("linear_fc1.weight", "linear_fc2.weight"))}
    assert apart.keys() == (in_8_bits if name.endswith("-weights") else set())
    assert all(1e-3 < value < 0.1 for value in apart.values()), apart
    assert other.states <= engine.states
