"""The three steps of a save: what is taken hold of, written beside other work of all ranks, and put into place."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from harness import collect_from_ranks, micro_batches, tiny_config
from oracle import Pieces, assemble, pieces_of

from megatron_ko.artifacts import checkpoints
from megatron_ko.config import RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.objectives import LanguageModelling
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.train.checkpoint import Checkpointer
from megatron_ko.train.engine import build_engine
from megatron_ko.train.lineage import identify
from megatron_ko.train.newest import find_newest
from megatron_ko.train.state import TrainState
from megatron_ko.train.state_parts import OptimizerState, Weights
from megatron_ko.train.step import train_step


def save_beside_other_work(config: RunConfig, first: bool) -> tuple[list[str], list[int], Pieces]:
    """Train a step and save, or restore; names seen before the commit, steps seen after it, and the weights."""
    groups = initialise(config.parallel, timeout_s=60)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    engine = build_engine(config, chunks, groups, LanguageModelling())
    parts = (Weights(engine.model, gathers_late=False), OptimizerState(engine.optimizer, engine.model))
    saver = Checkpointer(config, groups, parts, identify(config, "none"))
    folder = config.run.dir / "checkpoints"
    if not first:
        found = find_newest(folder, groups)
        assert found is not None and saver.restore(found).state.step == 1
        weights = pieces_of(chunks)
        destroy()
        return [], [], weights
    train_step(engine, micro_batches(config, groups, 0), lr=1e-3, weight_decay=0.1)
    state = TrainState(step=1)
    staged = saver.stage(state, {})
    state.step = 7  # what was staged no longer follows
    with ThreadPoolExecutor(1) as thread:
        files = thread.submit(saver.persist, staged)
        for _ in range(20):  # exchanges of the world meanwhile get their own answers
            ranks = torch.ones(1)
            torch.distributed.all_reduce(ranks)
            assert ranks.item() == groups.world_size
        written = files.result()
    torch.distributed.barrier()
    before = [entry.name for entry in folder.iterdir()]
    torch.distributed.barrier()
    saver.commit(staged, written)
    torch.distributed.barrier()
    after, weights = checkpoints.steps_in(folder), pieces_of(chunks)
    destroy()
    return before, after, weights


def test_files_are_written_while_all_ranks_exchange_other_things(tmp_path: Path) -> None:
    config = tiny_config({"tensor": 2}, run={"dir": tmp_path / "run"}, model={"num_layers": 2})
    ranks = collect_from_ranks(save_beside_other_work, 4, config, True)
    for before, after, _ in ranks:
        assert len(before) == 1 and before[0].startswith(checkpoints.TEMPORARY), "nothing is there before the commit"
        assert after == [1]
    saved = assemble(piece for rank in ranks for piece in rank[2])
    again = assemble(
        piece for rank in collect_from_ranks(save_beside_other_work, 4, config, False) for piece in rank[2]
    )
    assert saved.keys() == again.keys() and all(torch.equal(saved[name], again[name]) for name in saved)
