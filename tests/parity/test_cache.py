"""Logits from a cache of keys and values are those of the whole text at once."""

from typing import Any

import pytest
import torch
from harness import VOCABULARY, collect_from_ranks, tiny_config
from megatron.core.inference.contexts import StaticInferenceContext
from patience import PATIENCE

from megatron_ko.config import RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything

LENGTH = 40
PIECES = [(0, 15), (15, 20), *((place, place + 1) for place in range(20, LENGTH))]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "windows": {"family": "qwen3", "windows": (7, None, 2, 7)},
    "keural": {"family": "keural", "windows": (7, None, 7, None), "moe": {"num_experts": 4, "top_k": 2}},
}


def both(config: RunConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [b, s, v] after the last token of each piece: through the cache, and of the whole text."""
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(config.run.seed, groups)
    (model,) = build_model(Blueprint.of(config), groups, config.run.seed)
    model.eval()
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    places = torch.arange(LENGTH).expand_as(tokens)
    cache = StaticInferenceContext(max_batch_size=2, max_sequence_length=LENGTH)
    found = []
    with torch.inference_mode():
        whole = model(tokens, places, None)
        for start, stop in PIECES:
            given = tokens[:, start:stop], places[:, start:stop], None
            found.append(model(*given, inference_context=cache, runtime_gather_output=True)[:, -1:])
            cache.sequence_len_offset = stop
    destroy()
    return torch.cat(found, dim=1), whole[:, [stop - 1 for _, stop in PIECES]]


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_gives_the_logits_of_the_whole_text(name: str) -> None:
    ((cached, whole),) = collect_from_ranks(both, 1, tiny_config(model={"init_std": 0.2, **MODELS[name]}))
    assert whole.std() > 0.5
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-4)
