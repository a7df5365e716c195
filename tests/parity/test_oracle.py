"""The built model against transformers' LlamaForCausalLM with the same weights, and against time."""

from typing import Any

import pytest
import torch
from harness import SEQUENCE, VOCABULARY, Pieces, assemble, collect_from_ranks, pieces_of, tiny_config
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ko.config import RunConfig
from megatron_ko.models.build import build_model
from megatron_ko.parallel.groups import destroy, initialise
from megatron_ko.parallel.seed import seed_everything

TOKENS = torch.randint(VOCABULARY, (3, SEQUENCE), generator=torch.Generator().manual_seed(5))


def logits_rank(config: RunConfig, tokens: torch.Tensor) -> tuple[torch.Tensor, Pieces]:
    groups = initialise(config.parallel, timeout_s=60)
    seed_everything(config.run.seed, groups)
    chunks = build_model(config, groups)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        logits = chunks[0](tokens, positions, None)  # [b, s, v / t]
    pieces = pieces_of(chunks)
    destroy()
    return logits, pieces


def logits_and_weights(
    config: RunConfig, tokens: torch.Tensor = TOKENS
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ranks = collect_from_ranks(logits_rank, config.parallel.tensor, config, tokens)
    weights = assemble(piece for _, pieces in ranks for piece in pieces)
    return torch.cat([logits for logits, _ in ranks], dim=-1), weights


def llama(config: RunConfig, weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    """transformers' model with our global weights; our layout is undone here, independently of the package."""
    model = config.model
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.query_groups,
            head_dim=model.kv_channels,
            rms_norm_eps=model.norm_eps,
            max_position_embeddings=model.max_position_embeddings,
            tie_word_embeddings=model.tie_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope.theta},
        )
    )
    state: dict[str, torch.Tensor] = {
        "model.embed_tokens.weight": weights["embedding.word_embeddings.weight"][: model.vocab_size],
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
    }
    if not model.tie_embeddings:
        state["lm_head.weight"] = weights["output_layer.weight"][: model.vocab_size]
    for layer in range(model.num_layers):
        state |= {f"model.layers.{layer}.{name}": part for name, part in layer_of(config, weights, layer).items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if model.tie_embeddings else set())
    return theirs.eval()


def layer_of(config: RunConfig, weights: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    model, at = config.model, "decoder.layers"
    per_group = model.num_attention_heads // model.query_groups
    qkv = weights[f"{at}.self_attention.linear_qkv.weight"][layer]
    grouped = qkv.view(model.query_groups, per_group + 2, model.kv_channels, model.hidden_size)
    gate, up = weights[f"{at}.mlp.linear_fc1.weight"][layer].chunk(2)
    return {
        "input_layernorm.weight": weights[f"{at}.self_attention.linear_qkv.layer_norm_weight"][layer],
        "self_attn.q_proj.weight": grouped[:, :per_group].reshape(-1, model.hidden_size),
        "self_attn.k_proj.weight": grouped[:, per_group].reshape(-1, model.hidden_size),
        "self_attn.v_proj.weight": grouped[:, per_group + 1].reshape(-1, model.hidden_size),
        "self_attn.o_proj.weight": weights[f"{at}.self_attention.linear_proj.weight"][layer],
        "post_attention_layernorm.weight": weights[f"{at}.mlp.linear_fc1.layer_norm_weight"][layer],
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": weights[f"{at}.mlp.linear_fc2.weight"][layer],
    }


CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "untied": ({}, {}),
    "tied": ({}, {"tie_embeddings": True}),
    "one key/value head": ({}, {"num_query_groups": 1, "rope": {"theta": 500000.0}}),
    "no grouping": ({}, {"num_query_groups": None}),
    "wide heads": ({}, {"head_dim": 32, "norm_eps": 1e-6}),
    "tensor parallel": ({"tensor": 2}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str) -> None:
    parallel, model = CASES[case]
    # Weights as large as a trained model's: logits of a fresh one would be near 0 and hide errors.
    config = tiny_config(parallel, model={"init_std": 0.2, **model})
    logits, weights = logits_and_weights(config)
    with torch.no_grad():
        expected = llama(config, weights)(TOKENS).logits
    assert expected.std() > 0.5
    difference = (logits[..., :VOCABULARY] - expected).abs().max().item()
    print(f"{case}: {difference:.1e} of {expected.abs().max().item():.1f}")
    assert difference < 1e-4


def test_no_token_sees_a_later_one() -> None:
    config = tiny_config(model={"init_std": 0.2})
    before, _ = logits_and_weights(config)
    for position in (1, SEQUENCE // 2, SEQUENCE - 1):
        changed = TOKENS.clone()
        changed[:, position] = (changed[:, position] + 1) % VOCABULARY
        after, _ = logits_and_weights(config, changed)
        assert after[:, :position].equal(before[:, :position])
        assert not after[:, position].equal(before[:, position])
