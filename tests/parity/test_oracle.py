"""The built model against transformers' with the same weights, by family and rotary scaling; and against time."""

import zlib
from typing import Any

import pytest
import torch
from harness import SEQUENCE, VOCABULARY, collect_from_ranks, tiny_config
from keural_reference import keural_logits
from megatron.core.inference.contexts import StaticInferenceContext
from oracle import Pieces, assemble, pieces_of, renamed, to_transformers
from patience import PATIENCE

from megatron_ko.config import RunConfig
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.parameter_policy import sharded_parts
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything

TOKENS = torch.randint(VOCABULARY, (3, SEQUENCE), generator=torch.Generator().manual_seed(5))
# A trained context of half the sequence.
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 4.0},
    "ntk": {"type": "ntk", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16},
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn mscale": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 2.0,
        "mscale_all_dim": 0.5,
    },
    "llama3": {"type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16},
}
MOE = {"num_experts": 6, "top_k": 2}
YARN = {"rope": {"theta": 1e6, "scaling": SCALINGS["yarn"]}}
MODELS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "one key/value head": {"num_query_groups": 1, "rope": {"theta": 500000.0}},
    "no grouping": {"num_query_groups": None},
    "wide heads": {"head_dim": 32, "norm_eps": 1e-6},
    **{f"rope {name}": {"rope": {"theta": 500.0, "scaling": scaling}} for name, scaling in SCALINGS.items()},
    "qwen3": {"family": "qwen3", "norm_eps": 1e-6},
    "qwen3 yarn": {"family": "qwen3", "head_dim": 32, **YARN},
    "qwen3 windows": {"family": "qwen3", "windows": (5, None, 5, None)},
    "mixtral": {"family": "mixtral", "moe": MOE},
    "mixtral windows": {"family": "mixtral", "moe": MOE, "windows": (5, 5, 5, 5)},
    "keural without short windows": {
        "family": "keural",
        "moe": MOE,
        "windows": (None, None, None, None),
        "tie_embeddings": True,
    },
    "qwen3_moe normed": {"family": "qwen3_moe", "moe": MOE},
    "qwen3_moe not normed": {"family": "qwen3_moe", "moe": MOE | {"softmax_before_topk": True}},
}
KEURAL = {"family": "keural", "moe": MOE, "windows": (5, None, 5, None), "tie_embeddings": True}
LAYOUTS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "tensor parallel": ({"tensor": 2}, {}),
    "tensor parallel, shared key/value head": ({"tensor": 2}, {"num_query_groups": 1}),
    "tensor parallel, qwen3 yarn": ({"tensor": 2}, {"family": "qwen3", **YARN}),
    "tensor parallel, qwen3 shared key/value head": ({"tensor": 2}, {"family": "qwen3", "num_query_groups": 1}),
}
Result = tuple[torch.Tensor, dict[str, torch.Tensor]]


def oracle_config(model: dict[str, Any], parallel: dict[str, Any] | None = None) -> RunConfig:
    # Weights as large as a trained model's: logits of a fresh one would be near 0 and hide errors.
    return tiny_config(parallel, model={"init_std": 0.2, **model})


def logits_rank(configs: list[RunConfig], batches: list[torch.Tensor]) -> list[list[tuple[torch.Tensor, Pieces]]]:
    """For each model and batch this rank's part of the logits [b, s, v / t], and its part of the weights."""
    return [_logits(config, batches) for config in configs]


def _logits(config: RunConfig, batches: list[torch.Tensor]) -> list[tuple[torch.Tensor, Pieces]]:
    groups = initialise(config.parallel, timeout_s=PATIENCE)
    seed_everything(config.run.seed, groups)
    chunks = build_model(Blueprint.of(config), groups, config.run.seed)
    found = []
    with torch.no_grad():
        vary_norms(chunks)
        for tokens in batches:
            positions = torch.arange(tokens.shape[1]).expand_as(tokens)
            found.append((chunks[0](tokens, positions, None), pieces_of(chunks)))
    destroy()
    return found


def vary_norms(chunks: list[torch.nn.Module]) -> None:
    """Norms begin as ones, which would hide that one was taken for another."""
    for part in sharded_parts(chunks):
        if "norm" in part.key:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{part.key} {part.global_offset}".encode()))
            part.data.copy_(1 + 0.3 * torch.randn(part.data.shape, generator=generator))


def compute(configs: list[RunConfig], batches: list[torch.Tensor]) -> list[list[Result]]:
    """For each model and batch the logits [b, s, v] and the global weights; all models have the same layout."""
    ranks = collect_from_ranks(logits_rank, configs[0].parallel.model_size, configs, batches)
    return [[_join(parts) for parts in zip(*model, strict=True)] for model in zip(*ranks, strict=True)]


def _join(parts: tuple[tuple[torch.Tensor, Pieces], ...]) -> Result:
    weights = assemble(piece for _, pieces in parts for piece in pieces)
    return torch.cat([logits for logits, _ in parts], dim=-1), weights


@pytest.fixture(scope="module")
def alone() -> dict[str, Result]:
    results = compute([oracle_config(model) for model in MODELS.values()], [TOKENS])
    return {name: result for name, (result,) in zip(MODELS, results, strict=True)}


@pytest.fixture(scope="module")
def spread() -> dict[str, Result]:
    results = compute([oracle_config(model, parallel) for parallel, model in LAYOUTS.values()], [TOKENS])
    return {name: result for name, (result,) in zip(LAYOUTS, results, strict=True)}


@pytest.mark.parametrize("case", MODELS)
def test_logits_equal_those_of_transformers(case: str, alone: dict[str, Result]) -> None:
    check_against_transformers(case, oracle_config(MODELS[case]), alone[case])


@pytest.mark.parametrize("case", LAYOUTS)
def test_logits_of_a_layout_equal_those_of_transformers(case: str, spread: dict[str, Result]) -> None:
    check_against_transformers(case, oracle_config(LAYOUTS[case][1]), spread[case])


def check_against_transformers(case: str, config: RunConfig, result: Result) -> None:
    logits, weights = result
    with torch.no_grad():
        expected = to_transformers(config.model, weights)(TOKENS).logits
    check_close(case, logits, expected)


def check_close(case: str, logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.5
    difference = (logits[..., :VOCABULARY] - expected).abs().max().item()
    print(f"{case}: {difference:.1e} of {expected.abs().max().item():.1f}")
    assert difference < 1e-4


def test_keural_equals_its_formulas() -> None:
    config = oracle_config(KEURAL)
    ((logits, weights),) = compute([config], [TOKENS])[0]
    model = config.model
    assert model.moe and model.windows
    expected = keural_logits(
        TOKENS,
        renamed(model, weights),
        windows=model.windows,
        heads=model.num_attention_heads,
        groups=model.query_groups,
        top_k=model.moe.top_k,
        theta=model.rope.theta,
        eps=model.norm_eps,
    )
    check_close("keural", logits, expected)


def test_no_token_sees_a_later_one() -> None:
    positions = (1, SEQUENCE // 2, SEQUENCE - 1)
    batches = [TOKENS]
    for position in positions:
        changed = TOKENS.clone()
        changed[:, position] = (changed[:, position] + 1) % VOCABULARY
        batches.append(changed)
    (before, _), *others = compute([oracle_config({})], batches)[0]
    for position, (after, _) in zip(positions, others, strict=True):
        assert after[:, :position].equal(before[:, :position])
        assert not after[:, position].equal(before[:, position])


def cached_rank(configs: list[RunConfig]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits of a whole sequence at once, and through the cache: ten tokens, then one at a time."""
    found = []
    for config in configs:
        groups = initialise(config.parallel, timeout_s=PATIENCE)
        seed_everything(config.run.seed, groups)
        (model,) = build_model(Blueprint.of(config), groups, config.run.seed)
        model.eval()
        with torch.inference_mode():
            whole = model(TOKENS, torch.arange(SEQUENCE).expand_as(TOKENS), None)
            found.append((whole, _through_the_cache(model)))
        destroy()
    return found


def _through_the_cache(model: torch.nn.Module) -> torch.Tensor:
    cache = StaticInferenceContext(max_batch_size=len(TOKENS), max_sequence_length=SEQUENCE)
    steps = [slice(0, 10), *(slice(at, at + 1) for at in range(10, SEQUENCE))]
    logits = []
    for step in steps:
        positions = torch.arange(step.start, step.stop).expand(len(TOKENS), -1)
        new = model(TOKENS[:, step], positions, None, inference_context=cache, runtime_gather_output=True)
        cache.sequence_len_offset += step.stop - step.start
        logits.append(new[:, -1])  # megatron-core gives the last token's only
    return torch.stack(logits, dim=1)


def test_generation_rotates_cached_keys_as_training_does() -> None:
    cases = [name for name in MODELS if name.startswith("rope")] + ["qwen3 yarn", "qwen3 windows"]
    results = collect_from_ranks(cached_rank, 1, [oracle_config(MODELS[case]) for case in cases])[0]
    for case, (whole, stepwise) in zip(cases, results, strict=True):
        torch.testing.assert_close(
            stepwise, whole[:, 9:], rtol=1e-4, atol=1e-4, msg=lambda text, c=case: f"{c}: {text}"
        )
