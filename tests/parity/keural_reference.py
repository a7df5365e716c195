"""Keural written out: every formula of the forward pass, nothing fused, nothing shared with the package.

Weights carry the names and shapes of transformers' MixtralForCausalLM, whose network this is, but for one thing: each
layer has a window of its own.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def keural_logits(
    tokens: Tensor,
    state: Mapping[str, Tensor],
    *,
    windows: Sequence[int | None],
    heads: int,
    groups: int,
    top_k: int,
    theta: float,
    eps: float,
) -> Tensor:
    """[b, s] -> [b, s, v]; the embedding is the output layer too."""
    x = state["model.embed_tokens.weight"][tokens]
    for number, window in enumerate(windows):
        layer = {name.split(".", 3)[3]: w for name, w in state.items() if name.startswith(f"model.layers.{number}.")}
        x = x + attention(rms_norm(x, layer["input_layernorm.weight"], eps), layer, window, heads, groups, theta)
        x = x + experts(rms_norm(x, layer["post_attention_layernorm.weight"], eps), layer, top_k)
    return rms_norm(x, state["model.norm.weight"], eps) @ state["model.embed_tokens.weight"].T


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def attention(x: Tensor, layer: dict[str, Tensor], window: int | None, heads: int, groups: int, theta: float) -> Tensor:
    """Head n reads key/value head n * groups // heads; token i sees the tokens j <= i, i - j <= window."""
    b, s, _ = x.shape
    sizes = (("q", heads), ("k", groups), ("v", groups))
    q, k, v = ((x @ layer[f"self_attn.{name}_proj.weight"].T).view(b, s, n, -1) for name, n in sizes)
    q, k = rotate(q, theta), rotate(k, theta)
    i, j = torch.arange(s)[:, None], torch.arange(s)[None, :]
    seen = (j <= i) if window is None else (j <= i) & (i - j <= window)
    mixed = []
    for head in range(heads):
        group = head * groups // heads
        scores = q[:, :, head] @ k[:, :, group].mT / math.sqrt(q.shape[-1])
        mixed.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ v[:, :, group])
    return torch.cat(mixed, dim=-1) @ layer["self_attn.o_proj.weight"].T


def rotate(x: Tensor, theta: float) -> Tensor:
    """Dimension m and dimension m + d / 2 are turned by position / theta ** (2 m / d)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] / theta ** (torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def experts(x: Tensor, layer: dict[str, Tensor], top_k: int) -> Tensor:
    """The best top_k experts of each token, weighted by the softmax over their router logits alone."""
    output = torch.zeros_like(x)
    chosen = (x @ layer["mlp.gate.weight"].T).topk(top_k, dim=-1)
    weights = chosen.values.softmax(-1)
    for expert, (gate_up, down) in enumerate(
        zip(layer["mlp.experts.gate_up_proj"], layer["mlp.experts.down_proj"], strict=True)
    ):
        gate, up = (x @ gate_up.T).chunk(2, dim=-1)
        share = (weights * (chosen.indices == expert)).sum(-1, keepdim=True)
        output += share * ((gate * torch.sigmoid(gate) * up) @ down.T)
    return output
