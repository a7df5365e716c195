"""Logits from a cache of keys and values are those of the whole text at once."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import VOCABULARY, collect_from_ranks, tiny_config
from patience import PATIENCE
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ko.config import RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.inference_steps import EngineSteps, PortableSteps, steps_of
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything

LENGTH = 40
PIECES = [(0, 15), (15, 20), *((place, place + 1) for place in range(20, LENGTH))]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "windows": {"family": "qwen3", "windows": (7, None, 2, 7)},
    "keural": {"family": "keural", "windows": (7, None, 7, None), "moe": {"num_experts": 4, "top_k": 2}},
    "dynamic": {
        "rope": {"scaling": {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 16}},
    },
    "tied": {"tie_embeddings": True, "rope": {"scaling": {"type": "linear", "factor": 2.0}}},
}
Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Counting(TorchDispatchMode):
    """Counts operators, and the rotated vectors of those that rotate."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.rolled = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
        self.calls[name] += 1
        self.rolled += args[0].numel() if name == "roll" else 0
        return function(*args, **(kwargs or {}))


def in_a_world(check: Callable[[torch.nn.Module, torch.Tensor], Any], config: RunConfig) -> Any:
    """What a check of a model and of tokens [2, 40] finds, in a world of one rank."""
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(config.run.seed, groups)
    (model,) = build_model(Blueprint.of(config), groups, config.run.seed)
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    found = check(model.eval(), tokens)
    destroy()
    return found


def logits_of(model: torch.nn.Module, tokens: torch.Tensor) -> Logits:
    """Logits [b, s, v] after the last token of each piece: our steps, megatron-core's, and of the whole text."""
    ways = [steps_of(model, 2, LENGTH), EngineSteps(model, 2, LENGTH)]
    assert isinstance(ways[0], PortableSteps)
    ours, engine = (torch.stack([way.logits(tokens[:, a:b]) for a, b in PIECES], dim=1) for way in ways)
    with torch.inference_mode():
        whole = model(tokens, torch.arange(LENGTH).expand_as(tokens), None)
    return ours, engine, whole[:, [stop - 1 for _, stop in PIECES]]


def both(config: RunConfig) -> Logits:
    return in_a_world(logits_of, config)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_gives_the_logits_of_the_whole_text(name: str) -> None:
    ((ours, engine, whole),) = collect_from_ranks(both, 1, tiny_config(model={"init_std": 0.2, **MODELS[name]}))
    assert whole.std() > 0.5
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(engine, whole, rtol=1e-4, atol=1e-4)


def work_of_a_step(model: torch.nn.Module, tokens: torch.Tensor) -> tuple[Counter[str], int, int]:
    """Operators of a step of one token after 30, the numbers that it rotates, and those of one token's heads."""
    steps = steps_of(model, 2, LENGTH)
    steps.logits(tokens[:, :30])
    with Counting() as seen:
        steps.logits(tokens[:, 30:31])
    config: Any = model.config
    heads = config.num_attention_heads + config.num_query_groups
    return seen.calls, seen.rolled, 2 * config.num_layers * heads * config.kv_channels


def counted(config: RunConfig) -> tuple[Counter[str], int, int]:
    return in_a_world(work_of_a_step, config)  # type: ignore[no-any-return]


def test_a_step_rotates_only_its_own_token() -> None:
    """Not the keys of the tokens before it, with angles computed anew in every layer."""
    ((calls, rolled, own),) = collect_from_ranks(counted, 1, tiny_config())
    assert rolled == own
    assert not calls["cos"] and not calls["sin"], calls
