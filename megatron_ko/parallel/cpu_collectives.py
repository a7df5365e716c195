"""Collectives that expert parallelism needs and gloo lacks. Installed on a CPU only; CUDA is not affected."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

Group: TypeAlias = dist.ProcessGroup | None


def install() -> None:
    """Replace three functions of torch.distributed in this process."""
    dist.all_to_all_single = _with_plain_sizes(dist.all_to_all_single)
    dist.all_gather = _of_unequal_sizes(dist.all_gather)
    dist.reduce_scatter = _reduce_scatter


def _with_plain_sizes(all_to_all_single: Callable[..., Any]) -> Callable[..., Any]:
    """Accept split sizes as a tensor. On CUDA they have already been copied to the host; here they have not."""

    def plain(sizes: Sequence[int] | torch.Tensor | None) -> Sequence[int] | None:
        return sizes.tolist() if isinstance(sizes, torch.Tensor) else sizes

    @functools.wraps(all_to_all_single)
    def exchange(
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Sequence[int] | torch.Tensor | None = None,
        input_split_sizes: Sequence[int] | torch.Tensor | None = None,
        group: Group = None,
        async_op: bool = False,
    ) -> Any:
        return all_to_all_single(output, input, plain(output_split_sizes), plain(input_split_sizes), group, async_op)

    return exchange


def _of_unequal_sizes(all_gather: Callable[..., Any]) -> Callable[..., Any]:
    """Accept tensors that differ in their first dimension; they are padded to the longest."""

    @functools.wraps(all_gather)
    def gather(
        tensor_list: list[torch.Tensor], tensor: torch.Tensor, group: Group = None, async_op: bool = False
    ) -> Any:
        if all(part.shape == tensor.shape for part in tensor_list):
            return all_gather(tensor_list, tensor, group=group, async_op=async_op)
        longest = max(len(part) for part in tensor_list)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        gathered = [torch.empty_like(padded) for _ in tensor_list]
        all_gather(gathered, padded, group=group)
        for part, whole in zip(tensor_list, gathered, strict=True):
            part.copy_(whole[: len(part)])
        return None

    return gather


def _reduce_scatter(
    output: torch.Tensor,
    input_list: list[torch.Tensor],
    op: Any = dist.ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> None:
    """This rank's part of the reduced list of tensors, which may differ in their first dimension."""
    assert not async_op, "megatron-core waits for it"
    whole = torch.cat(input_list)
    dist.all_reduce(whole, op=op, group=group)
    rank = dist.get_rank(group)
    output.copy_(whole.split([len(part) for part in input_list])[rank])
