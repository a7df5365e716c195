"""Rotary frequencies and attention factors against those of transformers, below and beyond the original context."""

import math
from typing import Any

import pytest
import torch
from peer_models import transformers_config
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ko.config import ModelConfig, RopeConfig
from megatron_ko.models.rope import attention_factor, inverse_frequencies, softmax_scale

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
CASES: dict[str, tuple[float, int, dict[str, Any] | None]] = {
    "plain": (500_000.0, 128, None),
    "linear": (10_000.0, 64, {"type": "linear", "factor": 4.0}),
    "ntk": (1_000_000.0, 128, {"type": "ntk", "factor": 4.0}),
    "dynamic": (10_000.0, 64, {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 2048}),
    "yarn": (1_000_000.0, 128, YARN),
    "yarn, short context": (10_000.0, 64, YARN | {"original_max_position_embeddings": 24, "factor": 40.0}),
    "yarn, mscale": (10_000.0, 64, YARN | {"mscale": 1.0, "mscale_all_dim": 0.707}),
    "yarn, mscale equal": (10_000.0, 64, YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "yarn, other betas": (10_000.0, 96, YARN | {"beta_fast": 16.0, "beta_slow": 2.0}),
    "yarn, no passage": (10_000.0, 64, YARN | {"beta_fast": 1.0001, "beta_slow": 1.0, "factor": 1.0}),
    "llama3": (500_000.0, 128, {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}),
    "llama3, other factors": (
        10_000.0,
        64,
        {
            "type": "llama3",
            "factor": 32.0,
            "original_max_position_embeddings": 1024,
            "low_freq_factor": 2.0,
            "high_freq_factor": 8.0,
        },
    ),
}
LENGTHS = (16, 2048, 2049, 9000, 131_072)


def rope_of(case: str) -> tuple[RopeConfig, int]:
    theta, width, scaling = CASES[case]
    return RopeConfig.model_validate({"theta": theta, "scaling": scaling}), width


def peer_config(case: str) -> PreTrainedConfig:
    rope, width = rope_of(case)
    model = ModelConfig(
        num_layers=1,
        hidden_size=width,
        ffn_hidden_size=1,
        num_attention_heads=1,
        head_dim=width,
        vocab_size=1,
        max_position_embeddings=131_072,
        rope=rope,
    )
    return transformers_config(model)


@pytest.mark.parametrize("case", CASES)
def test_frequencies_and_factor_are_those_of_transformers(case: str) -> None:
    rope, width = rope_of(case)
    config = peer_config(case)
    kind, plain = config.rope_parameters["rope_type"], LlamaRotaryEmbedding(config)
    for length in LENGTHS:
        expected, factor = plain.inv_freq, plain.attention_scaling
        if kind != "default":
            expected, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
        ours = inverse_frequencies(rope, width, length)
        assert ours.dtype == torch.float32 and ours.shape == (width // 2,)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
        assert attention_factor(rope) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_rotated_scores_are_those_of_transformers(case: str) -> None:
    """q_i k_j at positions within and far beyond the original context, with the attention factor in the scale."""
    rope, width = rope_of(case)
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 1, 1, 4, width, generator=generator, dtype=torch.float64)
    positions = torch.tensor([[0, 7, 3000, 9000]])
    angles = positions[0, :, None] * inverse_frequencies(rope, width, 9001).double()
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    scores = rotate(query, cos, sin) @ rotate(key, cos, sin).mT * softmax_scale(rope, width)
    peer = LlamaRotaryEmbedding(peer_config(case))
    cos, sin = (part.double() for part in peer(torch.zeros(1, dtype=torch.float32), positions))
    expected = rotate(query, cos, sin) @ rotate(key, cos, sin).mT / math.sqrt(width)
    # transformers computes angles in fp32: at position 9000 they are exact to about 1e-3 of a radian.
    torch.testing.assert_close(scores, expected, rtol=0, atol=5e-3)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def test_dynamic_scaling_begins_where_the_context_ends() -> None:
    rope, width = rope_of("dynamic")
    plain = inverse_frequencies(RopeConfig(theta=rope.theta), width, 1)
    assert inverse_frequencies(rope, width, 2048).equal(plain)
    grown = [inverse_frequencies(rope, width, length)[-1].item() for length in (2049, 4096, 9000)]
    assert plain[-1] > grown[0] > grown[1] > grown[2]
