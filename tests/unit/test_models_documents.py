"""Document numbers as packed sequences, with a packed attention of a few lines in Transformer Engine's place."""

import itertools

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_ko.models.attention_kernels import View, attend
from megatron_ko.models.packed_documents import packed_sequences, packing_documents
from megatron_ko.parallel.platform import get_platform

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [2, 2, 2, 2, 2, 2, 3, 3]])


class PackedAttention:
    """Causal attention of each sequence in [t, n, d] by itself, as Transformer Engine defines the format "thd"."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: str,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        assert attention_mask is None and attn_mask_type == "causal"
        if packed_seq_params is None:  # [s, b, n, d]
            return self.attend(*(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))).permute(2, 0, 1, 3)
        borders = packed_seq_params.cu_seqlens_q.tolist()
        assert packed_seq_params.qkv_format == "thd" and packed_seq_params.cu_seqlens_q.dtype == torch.int32
        assert packed_seq_params.max_seqlen_kv == max(b - a for a, b in itertools.pairwise(borders))
        parts = [
            self.attend(*(tensor[start:stop].transpose(0, 1) for tensor in (query, key, value))).transpose(0, 1)
            for start, stop in itertools.pairwise(borders)
        ]
        return torch.cat(parts).flatten(1)  # [t, n * d]

    def attend(self, *inputs: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*inputs, is_causal=True)


def test_a_batch_becomes_lengths_and_comes_back_in_its_own_shape() -> None:
    get_platform()
    query, key, value = (torch.randn(8, 2, 4, 16) for _ in range(3))
    attention = packing_documents(PackedAttention)()
    output = attention.forward(query, key, value, DOCUMENTS, attn_mask_type="causal", packed_seq_params=None)
    inputs = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    expected = attend(*inputs, View((range(8),), None, DOCUMENTS), None).permute(2, 0, 1, 3).flatten(2)
    torch.testing.assert_close(output, expected)
    whole = attention.forward(query, key, value, None, attn_mask_type="causal")
    assert not torch.allclose(whole.flatten(2), output)


def test_rows_are_borders_too() -> None:
    packed = packed_sequences(DOCUMENTS)
    assert packed.cu_seqlens_q.tolist() == [0, 3, 7, 8, 14, 16]
    assert packed.cu_seqlens_kv.equal(packed.cu_seqlens_q) and packed.max_seqlen_q == 6
    assert packed_sequences(DOCUMENTS) is packed  # the layers of a micro-batch share it
