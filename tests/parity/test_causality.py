"""No logit depends on a token that it must not see, to the last bit: later, beyond windows, of another document."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from harness import DOCUMENT_START, SEQUENCE, VOCABULARY, collect_from_ranks, tiny_config
from megatron.core.pipeline_parallel import get_forward_backward_func
from patience import PATIENCE

from megatron_ko.config import RunConfig
from megatron_ko.data.training.batch import Batch, Collator
from megatron_ko.models import attention_kernels
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.context_parallel import positions_of
from megatron_ko.parallel.groups import Groups, destroy, initialise
from megatron_ko.parallel.seed import seed_everything

WINDOW, LAYERS = 3, 4
BORDERS = (9, 20)  # where documents begin
CHANGED = (1, 12, 16, SEQUENCE - 1)
MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"model": {"family": "qwen3", "windows": (WINDOW,) * LAYERS}},
    "some windows": {"model": {"family": "qwen3", "windows": (WINDOW, None, WINDOW, None)}},
    "documents": {"data": {"document_mask": True}},
    "window and documents": {
        "model": {"family": "qwen3", "windows": (WINDOW,) * LAYERS},
        "data": {"document_mask": True},
    },
}
AXES: dict[str, dict[str, Any]] = {
    "alone": {},
    "tensor": {"tensor": 2},
    "tensor with sequence": {"tensor": 2, "sequence_parallel": True},
    "pipeline": {"pipeline": 2},
    "context": {"context": 2},
    "context and tensor": {"context": 2, "tensor": 2, "sequence_parallel": True},
}


@pytest.fixture(scope="module", autouse=True)
def short_tiles() -> Iterator[None]:
    """Several tiles in a short sequence; ranks are forked from this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_kernels, "_TILE", 12)
        yield


def sequences() -> torch.Tensor:
    """One sequence, and after it the same with one token changed, for each place in ``CHANGED``."""
    tokens = torch.randint(DOCUMENT_START + 1, VOCABULARY, (SEQUENCE,), generator=torch.Generator().manual_seed(7))
    tokens[list(BORDERS)] = DOCUMENT_START
    rows = tokens.repeat(1 + len(CHANGED), 1)
    for row, place in enumerate(CHANGED, start=1):
        rows[row, place] = rows[row, place] % (VOCABULARY - 10) + 5
    return rows


class _Samples:
    """Rows of ``sequences``."""

    def __len__(self) -> int:
        return 1 + len(CHANGED)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict.fromkeys(("tokens", "labels", "loss_mask", "position_ids"), sequences()[index])


def logits_rank(configs: list[RunConfig]) -> list[torch.Tensor]:
    """For each model this rank's part of the logits of every sequence, with zeros elsewhere: [rows, s, v]."""
    return [_logits(config) for config in configs]


def _logits(config: RunConfig) -> torch.Tensor:
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(config.run.seed, groups)
    (chunk,) = build_model(Blueprint.of(config), groups, config.run.seed)
    start = DOCUMENT_START if config.data.document_mask else None
    collate = Collator(document_start=start, cp_rank=groups.cp_rank, cp_size=groups.cp_size)
    # One sequence a micro-batch, so that all are computed in the same shapes.
    batches = [collate(_Samples(), [row]) for row in range(len(_Samples()))]
    found: list[torch.Tensor] = get_forward_backward_func()(
        forward_step_func=_forward,
        data_iterator=iter(batches),
        model=chunk,
        num_microbatches=len(batches),
        seq_length=SEQUENCE,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    whole = _placed(found, groups)
    destroy()
    return whole


def _forward(batches: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    batch: Batch = next(batches)
    with torch.no_grad():
        output = model(batch.tokens, batch.position_ids, batch.documents)
    return output, lambda logits, non_loss_data: logits


def _placed(found: list[torch.Tensor], groups: Groups) -> torch.Tensor:
    whole = torch.zeros(len(_Samples()), SEQUENCE, VOCABULARY)
    if groups.is_last_stage:
        local = torch.cat(found)  # [rows, s / c, v / t]
        places = [place for run in positions_of(local.shape[1], groups.cp_rank, groups.cp_size) for place in run]
        width = local.shape[2]
        columns = slice(groups.tp_rank * width, min((groups.tp_rank + 1) * width, VOCABULARY))
        whole[:, places, columns] = local[:, :, : columns.stop - columns.start]
    return whole


@cache
def logits(axis: str) -> dict[str, torch.Tensor]:
    # Weights as large as a trained model's: or a change would hardly show.
    def settings(mask: dict[str, Any]) -> RunConfig:
        return tiny_config(AXES[axis], data=mask.get("data", {}), model={"init_std": 0.2, **mask.get("model", {})})

    configs = [settings(mask) for mask in MASKS.values()]
    ranks = collect_from_ranks(logits_rank, configs[0].parallel.model_size, configs)
    return dict(zip(MASKS, (sum(parts) for parts in zip(*ranks, strict=True)), strict=True))


def reach(mask: str, place: int) -> range:
    """The positions whose logits a token may change."""
    end = SEQUENCE
    if "documents" in mask:
        end = next((border for border in BORDERS if border > place), SEQUENCE)
    if mask in ("window", "window and documents"):
        end = min(end, place + LAYERS * WINDOW + 1)
    return range(place, end)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_token_changes_the_logits_that_may_see_it_and_no_others(mask: str, axis: str) -> None:
    before, *after = logits(axis)[mask]
    for place, changed in zip(CHANGED, after, strict=True):
        same = (before == changed).all(dim=-1)
        seen = reach(mask, place)
        assert same[: seen.start].all(), f"token {place} reaches back"
        assert same[seen.stop :].all(), f"token {place} reaches beyond {seen.stop}"
        assert not same[seen.start : seen.stop].any(), f"token {place} is not seen"


@pytest.mark.parametrize("axis", AXES)
def test_masks_mean_the_same_on_every_axis(axis: str) -> None:
    for mask, found in logits(axis).items():
        torch.testing.assert_close(found, logits("alone")[mask], rtol=1e-4, atol=1e-4)
    assert len({float(found.sum()) for found in logits(axis).values()}) == len(MASKS)


@pytest.mark.parametrize(
    "parallel",
    [{}, {"expert": 2}, {"expert": 2, "dispatcher": "allgather"}, {"expert": 2, "context": 2}],
    ids=["alone", "experts", "experts gathered", "experts and context"],
)
def test_experts_do_not_look_ahead(parallel: dict[str, Any]) -> None:
    """A later token goes to other experts, whose batches are then of another size: equal but for the order of sums."""
    moe = {"family": "keural", "windows": (WINDOW, None) * 2, "moe": {"num_experts": 4, "top_k": 2}, "init_std": 0.2}
    config = tiny_config(parallel, model=moe)
    ranks = collect_from_ranks(logits_rank, config.parallel.smallest_world, [config])
    copies = config.parallel.smallest_world // config.parallel.model_size
    before, *after = sum(parts for (parts,) in ranks) / copies  # every data-parallel rank computed all of them
    for place, changed in zip(CHANGED, after, strict=True):
        torch.testing.assert_close(changed[:place], before[:place], rtol=0, atol=1e-4)
        assert (changed[place:] - before[place:]).abs().amax(dim=-1).min() > 1e-3, f"token {place} is not seen"
