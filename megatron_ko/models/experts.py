"""The experts of the portable back end: a rank's experts are two tensors, multiplied in two grouped products."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ReplicaId, ShardedTensor, ShardedTensorFactory
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer import MegatronModule, TransformerConfig
from megatron.core.transformer.utils import make_sharded_object_for_checkpoint
from torch import Tensor

from megatron_ko.parallel.platform import get_platform

# Padding all experts to the busiest one may increase the work by this factor before a loop over experts is faster.
_MOST_PADDING = 2
_EXTRA_STATE = "._extra_state"
Offsets = tuple[tuple[int, int, int], ...]


class GroupedExperts(MegatronModule):
    """SwiGLU experts (Shazeer, 2020, arXiv:2002.05202) with megatron-core's interface for experts.

    In a checkpoint, parameters have the same names as in megatron-core's other implementations
    (``experts.linear_fc1.weight``, [experts, gate and up, hidden], and ``experts.linear_fc2.weight``), so that weights
    and optimizer states can be exchanged with Transformer Engine's.

    Args:
        num_local_experts: experts of this rank.
        config: the model.
        pg_collection: process groups; ``ep``, ``expt_tp`` and ``expt_dp`` are read.
        name: megatron-core 0.19 passes it for its own reports.

    Attributes:
        adapters: of fc1 and fc2, as ``expert_adapter`` puts them here: (tokens, output, counts) to the new output.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
    ) -> None:
        super().__init__(config=config)
        assert config.activation_func is F.silu and config.gated_linear_unit and not config.add_bias_linear
        self.num_local_experts = num_local_experts
        self._groups = pg_collection
        hidden, width = config.hidden_size, config.moe_ffn_hidden_size // pg_collection.expt_tp.size()
        self.register_load_state_dict_post_hook(_forget_extra_states)
        self.adapters: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}
        self.weight1 = self._allocate(2 * width, hidden, split_dim=1)
        self.weight2 = self._allocate(hidden, width, split_dim=2)

    def _allocate(self, outputs: int, inputs: int, split_dim: int) -> torch.nn.Parameter:
        weight = torch.nn.Parameter(
            torch.empty(
                self.num_local_experts,
                outputs,
                inputs,
                dtype=self.config.params_dtype,
                device=get_platform().device,
            )
        )
        set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=split_dim, stride=1)
        return weight

    def linear(self, tokens: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """One product for all experts; see ``expert_linear``. Low-precision recipes replace it."""
        return expert_linear(tokens, weight, counts)

    def forward(
        self, permuted_local_hidden_states: Tensor, tokens_per_expert: Tensor, permuted_probs: Tensor
    ) -> tuple[Tensor, None]:
        """Apply to every token its expert.

        Args:
            permuted_local_hidden_states: [t, h], sorted by expert.
            tokens_per_expert: [e], tokens of each expert; adds up to t.
            permuted_probs: [t], weight of the expert for the token.

        Returns:
            [t, h], this rank's part of a sum over the expert-tensor-parallel ranks; and None for the bias.
        """
        inner = self._adapted("fc1", permuted_local_hidden_states, self.weight1, tokens_per_expert)  # [t, 2 w]
        gate, up = inner.chunk(2, dim=-1)
        weighted = F.silu(gate) * up * permuted_probs.unsqueeze(-1)
        return self._adapted("fc2", weighted.to(inner.dtype), self.weight2, tokens_per_expert), None

    def _adapted(self, name: str, tokens: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """One product for all experts, changed by their adapters if they have any."""
        output = self.linear(tokens, weight, counts)
        return self.adapters[name](tokens, output, counts) if name in self.adapters else output

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """This rank's experts as parts of tensors over all experts."""
        groups, axis = self._groups, len(sharded_offsets)
        replica: ReplicaId = (0, 0, groups.expt_dp.rank())
        ours = (axis, groups.ep.rank(), groups.ep.size())
        keys = (f"{prefix}experts.linear_fc1.weight", f"{prefix}experts.linear_fc2.weight")
        tp_rank, tp_size = groups.expt_tp.rank(), groups.expt_tp.size()
        halves = partial(_gate_and_up, offsets=(*sharded_offsets, ours), tp_rank=tp_rank, tp_size=tp_size)
        second = ShardedTensor.from_rank_offsets(
            keys[1],
            self.weight2,
            *sharded_offsets,
            ours,
            (axis + 2, tp_rank, tp_size),
            replica_id=replica,
            prepend_axis_num=axis,
        )
        first = ShardedTensorFactory(keys[0], self.weight1, halves, partial(torch.cat, dim=1), replica)
        return {f"{prefix}weight1": first, f"{prefix}weight2": second, **self._extra_states(prefix, sharded_offsets)}

    def _extra_states(self, prefix: str, offsets: Offsets) -> dict[str, Any]:
        """Empty entries under the names where other implementations expect the state of their quantisers."""
        groups, states = self._groups, {}
        replica: ReplicaId = (0, groups.expt_tp.rank(), groups.expt_dp.rank())
        for own in range(self.num_local_experts):
            number = groups.ep.rank() * self.num_local_experts + own
            place = (*offsets, (len(offsets), number, groups.ep.size() * self.num_local_experts))
            for layer in ("linear_fc1", "linear_fc2"):
                states[f"{prefix}expert{number}.{layer}{_EXTRA_STATE}"] = make_sharded_object_for_checkpoint(
                    None, f"{prefix}experts.{layer}{_EXTRA_STATE}", place, replica
                )
        return states


def _forget_extra_states(_: torch.nn.Module, keys: Any) -> None:
    keys.unexpected_keys[:] = [key for key in keys.unexpected_keys if not key.endswith(_EXTRA_STATE)]


def _gate_and_up(
    key: str, weight: Tensor, replica: ReplicaId, _: slice | None, *, offsets: Offsets, tp_rank: int, tp_size: int
) -> list[ShardedTensor]:
    """Gate and up are one tensor [e, 2 w, h] here and on disk, but each is split over ranks separately."""
    axis = len(offsets) - 1
    return [
        ShardedTensor.from_rank_offsets(
            key,
            half,
            *offsets,
            (axis + 1, number * tp_size + tp_rank, 2 * tp_size),
            replica_id=replica,
            prepend_axis_num=axis,
        )
        for number, half in enumerate(weight.chunk(2, dim=1))
    ]


def expert_linear(tokens: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply each token by the matrix of its expert.

    Args:
        tokens: [t, i], sorted by expert.
        weight: [e, o, i].
        counts: [e], int64 on any device, tokens of each expert; adds up to t.

    Returns:
        [t, o].
    """
    if get_platform().runs_fused_kernels:
        return _in_one_kernel(tokens, weight, counts)
    sizes = counts.tolist()
    if len(sizes) * max(sizes) <= _MOST_PADDING * len(tokens):
        return _padded(tokens, weight, sizes)
    product: Tensor = _GroupedProduct.apply(tokens, weight, sizes)
    return product


def _in_one_kernel(tokens: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    if not len(tokens):  # the kernel needs at least one token; the experts still get a gradient, of zeros
        return tokens @ weight.sum(dim=0).t()
    ends = counts.to(tokens.device, torch.int32).cumsum(0, dtype=torch.int32)
    return F.grouped_mm(tokens, weight.transpose(1, 2), offs=ends)


def _padded(tokens: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    """One batched product, padded to the busiest expert. Fast on a CPU if loads are similar."""
    experts, longest, width = len(sizes), max(sizes), tokens.shape[1]
    if experts * longest == len(tokens):
        return _batched(tokens.view(experts, longest, width), weight)
    counts = torch.tensor(sizes)
    first = torch.arange(experts) * longest - (counts.cumsum(0) - counts)
    rows = torch.arange(len(tokens)) + first.repeat_interleave(counts)
    padded = tokens.new_zeros(experts * longest, width).index_copy(0, rows, tokens)
    return _batched(padded.view(experts, longest, width), weight).index_select(0, rows)


def _batched(tokens: Tensor, weight: Tensor) -> Tensor:
    """[e, t, i] by [e, o, i] to [e * t, o]."""
    # The weight is the first factor, so that its gradient has the weight's own memory layout. A transposed gradient
    # would be copied, which takes as long as the products.
    return torch.bmm(weight, tokens.transpose(1, 2)).transpose(1, 2).flatten(0, 1)


class _GroupedProduct(torch.autograd.Function):
    """A loop over experts that writes in place, outside autograd. For a CPU if loads differ a lot."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        ctx.sizes = sizes
        product = tokens.new_empty(len(tokens), weight.shape[1])
        for own, matrix, out in zip(tokens.split(sizes), weight, product.split(sizes), strict=True):
            torch.mm(own, matrix.t(), out=out)
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        tokens, weight = ctx.saved_tensors
        above, to_tokens = gradient.split(ctx.sizes), torch.empty_like(tokens)
        for from_above, below, matrix in zip(above, to_tokens.split(ctx.sizes), weight, strict=True):
            torch.mm(from_above, matrix, out=below)
        if not ctx.needs_input_grad[1]:  # frozen
            return to_tokens, None, None
        to_weight = torch.empty_like(weight)
        for from_above, own, to_matrix in zip(above, tokens.split(ctx.sizes), to_weight, strict=True):
            torch.mm(from_above.t(), own, out=to_matrix)
        return to_tokens, to_weight, None
