"""Fused attention: cuDNN's interface, with the logarithms of sums by which context parallelism adds up partial results.

A sequence is computed at a time, in fp32. The backward pass takes weights from those logarithms and not from a softmax
of its own, as the kernel does: with context parallelism they are of the whole sequence and its scores of a part.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from stub.enums import ENUMS
from stub.extension import KernelMissing, kernel

_F16 = ENUMS["NVTE_Fused_Attn_Backend"].NVTE_F16_arbitrary_seqlen  # type: ignore[attr-defined]
_NONE = ENUMS["NVTE_Fused_Attn_Backend"].NVTE_No_Backend  # type: ignore[attr-defined]
_LAYOUTS, _FORMATS, _MASKS = ENUMS["NVTE_QKV_Layout"], ENUMS["NVTE_QKV_Format"], ENUMS["NVTE_Mask_Type"]
HALVES = (ENUMS["DType"].kFloat16, ENUMS["DType"].kBFloat16)  # type: ignore[attr-defined]


@kernel
def get_fused_attn_backend(wanted: Any) -> tuple[int, str]:
    """Whether it is computed here: what these models ask for, in half precision, as cuDNN has it."""
    plain = int(wanted.bias_type) == 0 and int(wanted.softmax_type) == 0 and wanted.dropout == 0
    if int(wanted.qkv_dtype) in HALVES and plain:
        return _F16, ""
    return _NONE, "the stand-in has half precision without bias, sinks and dropout"


@dataclass(frozen=True)
class _Sequences:
    """Where the sequences of a tensor are.

    Attributes:
        layout: "sbhd", "bshd" or "thd".
        spans: first token and length of each; rows of a batch count from 0.
    """

    layout: str
    spans: tuple[tuple[int, int], ...]

    def of(self, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        """Each sequence as a view [tokens, heads, d]."""
        for row, (start, length) in enumerate(self.spans):
            whole = {"sbhd": lambda r: tensor[:, r], "bshd": lambda r: tensor[r], "thd": lambda _: tensor}
            yield whole[self.layout](row)[start : start + length]


def _sequences(layout: str, tensor: torch.Tensor, mask: str, lengths: Any, padded: Any) -> _Sequences:
    if layout == "thd":
        starts = lengths if padded is None else padded
        return _Sequences(layout, tuple(zip(starts[:-1].tolist(), lengths.diff().tolist(), strict=True)))
    longest, rows = tensor.shape[:2] if layout == "sbhd" else (tensor.shape[1], tensor.shape[0])
    used = lengths.diff().tolist() if "PADDING" in mask else [longest] * rows
    return _Sequences(layout, tuple((0, length) for length in used))


def _layouts(number: Any) -> tuple[str, str]:
    """Layouts of queries, and of keys and values, which are three tensors here."""
    parts = _LAYOUTS(int(number)).name.removeprefix("NVTE_").lower().split("_")
    plain = [part.replace("2", "").replace("3", "") for part in parts]
    if not set(plain) <= {"sbhd", "bshd", "thd"}:
        raise KernelMissing(f"attention of {parts}")
    return plain[0], plain[-1]


def _hidden(queries: int, keys: int, mask: str, window: tuple[int, int], bottom_right: bool) -> torch.Tensor:
    """What a query does not see, [queries, keys]."""
    shift = keys - queries if bottom_right or "BOTTOM_RIGHT" in mask else 0
    distance = torch.arange(queries)[:, None] + shift - torch.arange(keys)[None]
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if "CAUSAL" in mask:
        hidden |= distance < 0
    left, right = window
    if left >= 0:
        hidden |= distance > left
    if right >= 0:
        hidden |= distance < -right
    return hidden


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float, hidden: torch.Tensor) -> torch.Tensor:
    """[queries, n, d] and [keys, g, d] -> [n, queries, keys]."""
    many = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return (torch.einsum("qnd,knd->nqk", query, many) * scale).masked_fill_(hidden, -math.inf)


@kernel
def fused_attn_fwd(
    max_q: int, max_kv: int, training: bool, scale: float, dropout: float, fill: bool, layout: Any, o_format: Any,
    scale_format: Any, bias_type: Any, mask_type: Any, softmax_type: Any, window: tuple[int, int], bottom_right: bool,
    lengths_q: Any, lengths_kv: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dtype: Any, padded_q: Any,
    padded_kv: Any, *_: Any,
) -> list[torch.Tensor]:  # fmt: skip
    """Output, logarithms of the sums [b, n, s, 1] (packed: [t, n, 1]) and a random state that nothing reads."""
    mask, (query_layout, key_layout) = _MASKS(int(mask_type)).name, _layouts(layout)
    assert _FORMATS(int(o_format)).name == f"NVTE_{query_layout.upper()}" and dropout == 0
    queries = _sequences(query_layout, q, mask, lengths_q, padded_q)
    keys = _sequences(key_layout, k, mask, lengths_kv, padded_kv)
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    logs = _empty_logs(query_layout, q, len(queries.spans))
    parts = (queries.of(q), keys.of(k), keys.of(v), queries.of(out), _logs_of(queries, logs))
    for query, key, value, target, sums in zip(*parts, strict=True):
        hidden = _hidden(len(query), len(key), mask, window, bottom_right)
        scores = _scores(query.float(), key.float(), scale, hidden)
        sums.copy_(scores.logsumexp(-1))
        weights = _weights(scores, sums)
        many = value.float().repeat_interleave(q.shape[-2] // v.shape[-2], 1)
        target.copy_(torch.einsum("nqk,knd->qnd", weights, many))
    return [out, logs, torch.zeros(2, dtype=torch.int64)]


def _weights(scores: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Softmax from its logarithms; a query that sees nothing has none."""
    return (scores - sums.unsqueeze(-1).nan_to_num(neginf=0.0)).exp()


def _empty_logs(layout: str, q: torch.Tensor, rows: int) -> torch.Tensor:
    heads = q.shape[-2]
    if layout == "thd":
        return torch.full((q.shape[0], heads, 1), -math.inf)
    return torch.full((rows, heads, q.shape[0] if layout == "sbhd" else q.shape[1], 1), -math.inf)


def _logs_of(queries: _Sequences, logs: torch.Tensor) -> Iterator[torch.Tensor]:
    """Each sequence's as a view [n, tokens]."""
    for row, (start, length) in enumerate(queries.spans):
        packed = logs[start : start + length].squeeze(-1).t() if queries.layout == "thd" else None
        yield packed if packed is not None else logs[row, :, :length].reshape(logs.shape[1], -1)


@kernel
def fused_attn_bwd(
    max_q: int, max_kv: int, scale: float, dropout: float, fill: bool, layout: Any, o_format: Any, do_format: Any,
    d_layout: Any, scale_format: Any, do_scale_format: Any, bias_type: Any, mask_type: Any, softmax_type: Any,
    window: tuple[int, int], bottom_right: bool, deterministic: bool, lengths_q: Any, lengths_kv: Any, q: torch.Tensor,
    k: torch.Tensor, v: torch.Tensor, o: torch.Tensor, d_o: torch.Tensor, dtype: Any, saved: list[torch.Tensor],
    padded_q: Any, padded_kv: Any, *_: Any,
) -> list[torch.Tensor | None]:  # fmt: skip
    """Gradients of queries, keys and values (Dao et al., 2022, algorithm 4, without tiles)."""
    mask, (query_layout, key_layout) = _MASKS(int(mask_type)).name, _layouts(layout)
    queries = _sequences(query_layout, q, mask, lengths_q, padded_q)
    keys = _sequences(key_layout, k, mask, lengths_kv, padded_kv)
    d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    groups, share = k.shape[-2], q.shape[-2] // k.shape[-2]
    sources = (queries.of(q), keys.of(k), keys.of(v), queries.of(o), queries.of(d_o), _logs_of(queries, saved[0]))
    targets = (queries.of(d_q), keys.of(d_k), keys.of(d_v))
    for query, key, value, output, outer, sums, to_query, to_key, to_value in zip(*sources, *targets, strict=True):
        hidden = _hidden(len(query), len(key), mask, window, bottom_right)
        wide_query, wide_key, outer = query.float(), key.float(), outer.float()
        weights = _weights(_scores(wide_query, wide_key, scale, hidden), sums.float())
        many = value.float().repeat_interleave(share, 1)
        inner = torch.einsum("qnd,knd->nqk", outer, many)
        row = (outer * output.float()).sum(-1).t().unsqueeze(-1)  # [n, queries, 1]
        slope = weights * (inner - row) * scale
        to_query.copy_(torch.einsum("nqk,knd->qnd", slope, wide_key.repeat_interleave(share, 1)))
        grouped = torch.einsum("nqk,qnd->knd", slope, wide_query).unflatten(1, (groups, share))
        to_key.copy_(grouped.sum(2))
        to_value.copy_(torch.einsum("nqk,qnd->knd", weights, outer).unflatten(1, (groups, share)).sum(2))
    return [d_q, d_k, d_v, None, None]
