"""Weights across layouts: written at one, read at another, equal to those that the other initialises by itself."""

from pathlib import Path

import pytest
import torch
from harness import Pieces, assemble, collect_from_ranks, pieces_of, relative_difference, tiny_config, train_under
from megatron.core import dist_checkpointing
from patience import PATIENCE

from megatron_ko.config import RunConfig
from megatron_ko.errors import CheckpointError
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.weights import load_weights, sharded_weights
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.train.tensor_files import InProcessSave


def build_rank(config: RunConfig, load: Path | None, save: Path | None) -> Pieces:
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    if load is not None:
        load_weights(chunks, load)
    if save is not None:
        dist_checkpointing.save(sharded_weights(chunks), str(save), InProcessSave())
    pieces = pieces_of(chunks)
    destroy()
    return pieces


def weights_of(
    config: RunConfig, world_size: int, load: Path | None = None, save: Path | None = None
) -> dict[str, torch.Tensor]:
    ranks = collect_from_ranks(build_rank, world_size, config, load, save)
    return assemble(piece for pieces in ranks for piece in pieces)


@pytest.mark.parametrize("tied", [False, True])
def test_resharded_weights_equal_those_initialised_in_place(tied: bool, tmp_path: Path) -> None:
    model = {"tie_embeddings": tied}
    spread = tiny_config({"tensor": 2, "pipeline": 2}, model=model)
    weights_of(spread, 4, save=tmp_path)
    initialised = weights_of(tiny_config(model=model), 1)
    # Another seed, so that only what was read can be equal.
    other = {"run": {"seed": 99}, "model": model}
    for parallel, world_size in (({}, 1), ({"pipeline": 2, "virtual_pipeline": 2}, 2)):
        fresh = weights_of(tiny_config(parallel, **other), world_size)
        assert not fresh["embedding.word_embeddings.weight"].equal(initialised["embedding.word_embeddings.weight"])
        read = weights_of(tiny_config(parallel, **other), world_size, load=tmp_path)
        assert read.keys() == initialised.keys()
        assert all(read[key].equal(weight) for key, weight in initialised.items())


@pytest.mark.parametrize("parallel", [{"pipeline": 2}, {"tensor": 2, "pipeline": 2}])
def test_tied_embeddings_train_alike_across_stages(parallel: dict[str, int]) -> None:
    model = {"tie_embeddings": True}
    alone = train_under(tiny_config(model=model), 1)
    spread = train_under(tiny_config(parallel, model=model), 2 * parallel.get("tensor", 1))
    assert "output_layer.weight" not in spread.weights
    for key, gradient in alone.gradients.items():
        assert spread.weights[key].equal(alone.weights[key])
        assert relative_difference(spread.gradients[key], gradient) < 1e-5, key
    assert spread.losses == pytest.approx(alone.losses, rel=1e-5)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    weights_of(tiny_config(), 1, save=tmp_path)
    other_width, other_keys = {"hidden_size": 96, "head_dim": 16}, {"num_layers": 6}
    for load, model in ((tmp_path, other_width), (tmp_path, other_keys), (tmp_path / "nothing", {})):
        assert collect_from_ranks(refused_rank, 1, tiny_config(model=model), load) == [True]


def refused_rank(config: RunConfig, load: Path) -> bool:
    try:
        build_rank(config, load, None)
    except CheckpointError as error:
        return str(load) in str(error)
    return False
