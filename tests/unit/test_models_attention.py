"""The portable attention against the formula, written out; and the norm against its definition."""

import math

import pytest
import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_ko.models.attention import PortableAttention
from megatron_ko.models.norm import RMSNorm
from megatron_ko.parallel.platform import get_platform

HEADS, WIDTH = 4, 8


def attention(mask_type: AttnMaskType = AttnMaskType.causal, scale: float | None = None) -> PortableAttention:
    get_platform()
    settings = TransformerConfig(
        num_layers=1, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, attention_dropout=0.0
    )
    return PortableAttention(settings, 1, mask_type, "self", softmax_scale=scale)


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


def test_a_call_may_name_another_mask() -> None:
    inputs = tensors(1, 6, 2)
    for output in (
        attention()(*inputs, None, attn_mask_type=AttnMaskType.no_mask),
        attention(AttnMaskType.no_mask)(*inputs, None),
    ):
        torch.testing.assert_close(output, reference(*inputs, torch.zeros(2, 1, 6, dtype=torch.bool)))


def test_a_given_mask_is_complete() -> None:
    """Left padding of a batch: the first sample's first two keys are no tokens."""
    inputs = tensors(5, 5, 2)
    hidden = causal(5, 5)
    hidden[0, :, :2] = True
    hidden[0, :2, 0] = False  # a query must see something
    for mask_type in (AttnMaskType.causal, AttnMaskType.arbitrary):
        output = attention()(*inputs, hidden[:, None], attn_mask_type=mask_type)
        torch.testing.assert_close(output, reference(*inputs, hidden))


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
