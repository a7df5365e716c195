"""The portable attention against the formula, written out; and the norm against its definition."""

import math
from typing import Any

import pytest
import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from patience import PATIENCE
from torch import Tensor

from megatron_ko.config import ParallelConfig
from megatron_ko.models.attention import PortableAttention
from megatron_ko.models.norm import RMSNorm
from megatron_ko.parallel.groups import initialise
from megatron_ko.parallel.platform import get_platform
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks

HEADS, WIDTH = 4, 8


def transformer_config(**fields: Any) -> TransformerConfig:
    get_platform()
    return TransformerConfig(
        num_layers=1, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, attention_dropout=0.0, **fields
    )


def attention(window: int | None = None, scale: float | None = None) -> PortableAttention:
    settings = transformer_config(window_size=None if window is None else (window, 0))
    return PortableAttention(settings, 1, AttnMaskType.causal, "self", softmax_scale=scale)


def tensors(queries: int, keys: int, groups: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries * 100 + keys * 10 + groups)
    shapes = [(queries, 2, HEADS, WIDTH), (keys, 2, groups, WIDTH), (keys, 2, groups, WIDTH)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def reference(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Tensor:
    """Softmax attention with loops over heads; ``hidden`` [b, s, t] is True where a query must not look."""
    outputs = []
    per_group = query.shape[2] // key.shape[2]
    for head in range(query.shape[2]):
        q, k, v = query[:, :, head], key[:, :, head // per_group], value[:, :, head // per_group]
        scores = torch.einsum("sbd,tbd->bst", q, k) / math.sqrt(WIDTH)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        outputs.append(torch.einsum("bst,tbd->sbd", weights, v))
    return torch.cat(outputs, dim=-1)


def causal(queries: int, keys: int) -> Tensor:
    """[b, s, t]; the last query sees all keys."""
    return torch.ones(2, queries, keys, dtype=torch.bool).triu(keys - queries + 1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (1, 6), (3, 7)])
def test_attention_and_its_gradients_are_those_of_the_formula(queries: int, keys: int, groups: int) -> None:
    inputs = tensors(queries, keys, groups)
    output = attention()(*inputs, None)
    expected = reference(*inputs, causal(queries, keys))
    assert output.shape == (queries, 2, HEADS * WIDTH)
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    ours = torch.autograd.grad((output * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (1, 9), (4, 9)])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_window_is_that_many_earlier_tokens_and_oneself(window: int, queries: int, keys: int) -> None:
    inputs = tensors(queries, keys, 2)
    older = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries - window - 1)
    hidden = causal(queries, keys) | older
    for mask_type in (None, AttnMaskType.no_mask):  # what megatron-core passes after a cache
        output = attention(window=window)(*inputs, None, attn_mask_type=mask_type)
        torch.testing.assert_close(output, reference(*inputs, hidden))


def windows_of_megatron_core() -> None:
    """Its mask is built from ``window_size`` too, on every layer."""
    groups = initialise(ParallelConfig(), timeout_s=PATIENCE)
    seed_everything(0, groups)
    inputs = [tensor.float() for tensor in tensors(12, 12, 2)]
    for window in (1, 5, 30):
        settings = transformer_config(window_size=(window, 0), num_query_groups=2)
        theirs = DotProductAttention(settings, 1, AttnMaskType.causal, "self", pg_collection=groups.pg)
        torch.testing.assert_close(attention(window=window)(*inputs, None), theirs(*inputs, None))


def test_windows_are_those_of_megatron_cores_own_attention() -> None:
    assert run_ranks(windows_of_megatron_core, 1, threads=1) == 0


def test_documents_are_kept_apart() -> None:
    inputs = tensors(7, 7, 2)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 1]])
    other = documents.unsqueeze(1) != documents.unsqueeze(2)
    output = attention()(*inputs, documents)
    torch.testing.assert_close(output, reference(*inputs, causal(7, 7) | other))


def test_scale_is_the_configured_one() -> None:
    inputs = tensors(4, 4, 4)
    scaled = attention(scale=0.5)(*inputs, None)
    stretched = [inputs[0] * 0.5 * math.sqrt(WIDTH), *inputs[1:]]
    torch.testing.assert_close(scaled, reference(*stretched, causal(4, 4)))


def test_rms_norm_is_its_definition_and_carries_the_mark() -> None:
    for sequence_parallel in (False, True):
        settings = TransformerConfig(
            num_layers=1,
            hidden_size=16,
            num_attention_heads=2,
            tensor_model_parallel_size=2,
            sequence_parallel=sequence_parallel,
        )
        norm = RMSNorm(config=settings, hidden_size=16, eps=1e-6)
        assert norm.weight.sequence_parallel is sequence_parallel
    x = torch.randn(3, 2, 16)
    with torch.no_grad():
        norm.weight.normal_()
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
