"""Process groups of many layouts, and random states, in one world of four ranks."""

import pickle
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from patience import PATIENCE

from megatron_ko.config import ParallelConfig
from megatron_ko.parallel.groups import Groups, destroy, initialise
from megatron_ko.parallel.seed import rng_state, seed_everything, set_rng_state
from megatron_ko.parallel.spawn import run_ranks

LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 2, 2), (2, 2, 1), (4, 1, 1), (1, 4, 1)]


def check_layouts() -> None:
    for tensor, pipeline, chunks in LAYOUTS:
        groups = initialise(
            ParallelConfig(tensor=tensor, pipeline=pipeline, virtual_pipeline=chunks), timeout_s=PATIENCE
        )
        rank = dist.get_rank()
        assert (groups.rank, groups.world_size, groups.vp_size) == (rank, 4, chunks)
        sizes = groups.tp_size, groups.cp_size, groups.dp_size, groups.pp_size
        assert sizes == (tensor, 1, 4 // (tensor * pipeline), pipeline)
        # Tensor-parallel ranks are neighbours, pipeline stages are farthest apart.
        assert groups.tp_rank == rank % tensor
        assert groups.dp_rank == rank // tensor % groups.dp_size
        assert groups.pp_rank == rank // (tensor * groups.dp_size)
        assert (groups.is_first_stage, groups.is_last_stage) == (groups.pp_rank == 0, groups.pp_rank == pipeline - 1)
        for group, size in ((groups.pg.tp, tensor), (groups.pg.pp, pipeline), (groups.pg.dp_cp, groups.dp_size)):
            total = torch.ones(1)
            dist.all_reduce(total, group=group)
            assert total.item() == size
        destroy()


def check_seeds(folder: Path) -> None:
    groups = initialise(ParallelConfig(tensor=2), timeout_s=PATIENCE)
    seed_everything(5, groups)
    shared = torch.rand(3)
    with get_cuda_rng_tracker().fork():
        own = torch.rand(3)
    torch.save((groups.tp_rank, groups.dp_rank, shared, own), folder / f"{groups.rank}.pt")
    check_restoring(groups)
    destroy()


def draw() -> list[float]:
    with get_cuda_rng_tracker().fork():
        split = torch.rand(1).item()
    return [random.random(), float(np.random.rand()), torch.rand(1).item(), random.gauss(), split]


def check_restoring(groups: Groups) -> None:
    seed_everything(5, groups)
    draw()
    state = rng_state()
    expected = [draw(), draw()]
    # As a checkpoint brings it back: written without code in it, read by a later process.
    with tempfile.TemporaryFile() as file:
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    pickle.dumps(state)
    for _ in range(2):  # reading a state does not use it up
        seed_everything(9, groups)
        assert draw() != expected[0]
        set_rng_state(state)
        assert [draw(), draw()] == expected


def test_groups_of_every_layout_have_the_right_members() -> None:
    assert run_ranks(check_layouts, 4, (), threads=1) == 0


def test_seeds_are_shared_where_they_must_be_and_states_come_back(tmp_path: Path) -> None:
    assert run_ranks(check_seeds, 4, (tmp_path,), threads=1) == 0
    found = {}
    for rank in range(4):
        tp_rank, dp_rank, shared, own = torch.load(tmp_path / f"{rank}.pt")
        found[tp_rank, dp_rank] = (shared, own)
    assert found[0, 0][0].equal(found[1, 0][0]) and not found[0, 0][1].equal(found[1, 0][1])
    assert not found[0, 0][0].equal(found[0, 1][0]), "replicas draw different masks"


def too_slow() -> None:
    groups = initialise(ParallelConfig(), timeout_s=3)
    if groups.rank == 0:
        dist.all_reduce(torch.ones(1), group=groups.pg.dp_cp)  # nobody else comes
    else:
        import time

        time.sleep(20)


def test_a_collective_that_nobody_joins_ends_after_the_timeout(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_ranks(too_slow, 2, (), threads=1, grace_s=0.1) == 1
    assert "Timed out" in capfd.readouterr().err
