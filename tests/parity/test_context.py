"""Ranks that share sequences train like one rank: first gradients by parameter, losses of four steps."""

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from harness import SEQUENCE, Outcome, collect_from_ranks, relative_difference, tiny_config, train_all
from megatron.core.utils import get_batch_on_this_cp_rank
from patience import PATIENCE

from megatron_ko.config import ParallelConfig, RunConfig
from megatron_ko.data.training.batch import Collator
from megatron_ko.models import attention_kernels
from megatron_ko.models.context_parallel import gather_in_order, positions_of
from megatron_ko.parallel.groups import destroy, initialise

DOCUMENTS = {"document_mask": True}
TWO = {"num_layers": 2}
MOE = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "moe": {"num_experts": 4, "top_k": 2, "aux_loss_coeff": 0.02},
}
# Name -> (model, data). Four layers where four windows differ.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (TWO, {}),
    "llama documents": (TWO, DOCUMENTS),
    "tied": ({**TWO, "tie_embeddings": True, "num_attention_heads": 6, "num_query_groups": 3, "head_dim": 16}, {}),
    "qwen3 windows": ({"family": "qwen3", "windows": (7, None, 3, 12)}, {}),
    "qwen3 windows documents": ({"family": "qwen3", "windows": (7, None, 3, 12)}, DOCUMENTS),
    "mixtral": ({"family": "mixtral", **MOE}, {}),
    "keural documents": (
        {"family": "keural", "windows": (7, None), "tie_embeddings": True, **MOE},
        DOCUMENTS,
    ),
}
CP2, TP2, PP2 = {"context": 2}, {"tensor": 2, "sequence_parallel": True}, {"pipeline": 2}
EP2 = {"expert": 2, "expert_tensor": 1}
# World size -> layout -> models.
CASES: dict[int, dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    2: {
        "cp2": (CP2, ("llama", "llama documents", "tied", "qwen3 windows", "mixtral", "keural documents")),
        "cp2 plain optimizer": (CP2 | {"distributed_optimizer": False}, ("qwen3 windows documents",)),
        "cp2 ep2": (CP2 | EP2, ("mixtral", "keural documents")),
    },
    4: {
        "cp4": ({"context": 4}, ("qwen3 windows documents",)),
        "cp2 tp2": (CP2 | {"tensor": 2}, ("llama",)),
        "cp2 tp2 sequence": (CP2 | TP2, ("qwen3 windows documents",)),
        "cp2 pp2": (CP2 | PP2, ("llama documents",)),
        "cp2 pp2 interleaved": (CP2 | PP2 | {"virtual_pipeline": 2}, ("qwen3 windows documents",)),
        "cp2 dp2": (CP2, ("qwen3 windows",)),
        "cp2 tp2 ep2": (CP2 | TP2 | EP2, ("keural documents",)),
    },
}
NAMED = [(world, layout, model) for world, cases in CASES.items() for layout in cases for model in cases[layout][1]]


@pytest.fixture(scope="module", autouse=True)
def short_tiles() -> Iterator[None]:
    """Several tiles in a short sequence; ranks are forked from this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_kernels, "_TILE", 12)
        yield


def case_config(layout: dict[str, Any], model: str) -> RunConfig:
    network, data = MODELS[model]
    return tiny_config(layout, model=network, data=data, training={"micro_batch_size": 4})


@cache
def alone() -> dict[str, Outcome]:
    return dict(zip(MODELS, train_all([case_config({}, model) for model in MODELS], 1), strict=True))


@cache
def spread(world_size: int) -> dict[tuple[str, str], Outcome]:
    cases = [(layout, model) for world, layout, model in NAMED if world == world_size]
    configs = [case_config(CASES[world_size][layout][0], model) for layout, model in cases]
    return dict(zip(cases, train_all(configs, world_size), strict=True))


@pytest.mark.parametrize(("world_size", "layout", "model"), NAMED)
def test_training_does_not_depend_on_who_holds_the_sequence(world_size: int, layout: str, model: str) -> None:
    one, many = alone()[model], spread(world_size)[layout, model]
    errors = {key: relative_difference(many.gradients[key], gradient) for key, gradient in one.gradients.items()}
    worst = max(errors, key=lambda key: errors[key])
    assert many.gradients.keys() == one.gradients.keys() and errors[worst] < 1e-5, f"{worst}: {errors[worst]:.1e}"
    assert many.losses == pytest.approx(one.losses, rel=1e-5)
    assert many.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
    drift = max(abs(a / b - 1) for a, b in zip(many.losses, one.losses, strict=True))
    print(f"{layout}, {model}: gradients {errors[worst]:.1e}, losses {drift:.1e}")


def test_windows_and_documents_change_what_is_learnt() -> None:
    """Or the cases above would all be the same."""
    losses = {name: outcome.losses[0] for name, outcome in alone().items()}
    assert len(set(losses.values())) == len(losses)


def parts_of_ranks() -> dict[str, torch.Tensor]:
    groups = initialise(ParallelConfig(context=4), timeout_s=PATIENCE)
    whole = torch.arange(2 * SEQUENCE).view(2, SEQUENCE)
    ours = Collator(cp_rank=groups.cp_rank, cp_size=4)(_Rows(whole), range(2)).tokens
    named: dict[str, Any] = {"is_hybrid_cp": False} if _has_hybrid() else {}
    theirs = get_batch_on_this_cp_rank({"tokens": whole}, cp_group=groups.pg.cp, **named)["tokens"]
    places = torch.cat([torch.arange(run.start, run.stop) for run in positions_of(SEQUENCE // 4, groups.cp_rank, 4)])
    # [s, b, g, d], with a gradient that tells the rank and the position.
    local = whole[:, places].T.double().view(-1, 2, 1, 1).requires_grad_()
    key, value = gather_in_order((local, local * 2), groups.pg.cp)
    weight = torch.arange(1.0, SEQUENCE + 1, dtype=torch.float64).view(-1, 1, 1, 1) * 10**groups.cp_rank
    (gradient,) = torch.autograd.grad((key * weight + value * weight).sum(), local)
    destroy()
    return {
        "ours": ours,
        "theirs": theirs,
        "places": whole[:, places],
        "key": key.detach(),
        "value": value.detach(),
        "gradient": gradient / 1111 - (places.double().view(-1, 1, 1, 1) + 1) * 3,
    }


def _has_hybrid() -> bool:
    return "is_hybrid_cp" in inspect.signature(get_batch_on_this_cp_rank).parameters


class _Rows:
    """Rows of one tensor as samples."""

    def __init__(self, whole: torch.Tensor) -> None:
        self._whole = whole

    def __len__(self) -> int:
        return len(self._whole)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict.fromkeys(("tokens", "labels", "loss_mask", "position_ids"), self._whole[index])


def test_parts_are_megatron_cores_and_come_back_in_order() -> None:
    whole = torch.arange(2.0 * SEQUENCE, dtype=torch.float64).view(2, SEQUENCE).T.view(SEQUENCE, 2, 1, 1)
    for part in collect_from_ranks(parts_of_ranks, 4):
        assert part["ours"].equal(part["theirs"]) and part["ours"].equal(part["places"])
        assert part["key"].equal(whole) and part["value"].equal(2 * whole)
        assert part["gradient"].abs().max() < 1e-9  # the weights of all four ranks, added up
