"""Native weights on disk, tensor by tensor: read a part of one, or write them all while holding one at a time.

megatron-core's checkpoints of the format "torch_dist" are PyTorch distributed checkpoints with two files more. Names
and shapes are global, whatever layout wrote them; layers, and experts within them, are leading axes.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, Metadata, SavePlan, SavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_ko.errors import CheckpointError, conserve

# What megatron-core writes beside PyTorch's files, so that it recognises the format.
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
_NOT_WEIGHTS = ("optimizer.", "rng_state")


@dataclass(frozen=True)
class TensorBlock:
    """A block of a global tensor: one layer of it, one expert of a layer, or all of it.

    Attributes:
        key: name of the tensor.
        index: position on its leading axes, () for the whole tensor.
        shape: shape of the block without those axes.
        dtype: its type.
        make: gives the block when it is written.
    """

    key: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


class NativeReader:
    """Reads the weights of a checkpoint without a model and without process groups.

    Args:
        directory: folder that megatron-core's ``dist_checkpointing`` wrote.

    Raises:
        CheckpointError: it is no such folder.
    """

    def __init__(self, directory: Path) -> None:
        self._reader = FileSystemReader(directory)
        try:
            self._metadata: Metadata = self._reader.read_metadata()
        except (OSError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                "native weights cannot be read", got=f"{directory}: {error}", expected="a folder of a checkpoint"
            ) from error
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._tensors = {
            key: stored
            for key, stored in self._metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and not key.startswith(_NOT_WEIGHTS)
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Global shape of every weight, leading axes included."""
        return {key: tuple(stored.size) for key, stored in self._tensors.items()}

    def dtype(self, key: str) -> torch.dtype:
        """Type of a weight."""
        return self._tensors[key].properties.dtype

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """One block: ``index`` chooses on the leading axes, and these are left out of the result."""
        stored = self._tensors[key]
        sizes = (*(1 for _ in index), *stored.size[len(index) :])
        offsets = (*index, *(0 for _ in stored.size[len(index) :]))
        target = torch.empty(sizes, dtype=stored.properties.dtype)
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        plan = LoadPlan(create_read_items_for_chunk_list(key, stored, [chunk]))
        self._reader.read_data(plan, _IntoOne(target)).wait()
        return target.reshape(sizes[len(index) :])


class _IntoOne(LoadPlanner):
    """Puts everything that is read into one tensor."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""

    def create_local_plan(self) -> LoadPlan:
        raise AssertionError("the plan is made by the reader")

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise AssertionError("the plan is made by the reader")

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise AssertionError("weights are tensors")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        region = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._target[tuple(slice(start, start + length) for start, length in region)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It was written in place."""


def write_native(directory: Path, parts: Iterable[TensorBlock], shapes: dict[str, tuple[int, ...]]) -> None:
    """Write weights in megatron-core's format. Each part is made when its turn comes and dropped after it.

    Args:
        directory: an existing, empty folder.
        parts: blocks that together cover every tensor once.
        shapes: global shapes, leading axes included.
    """
    planner = _OneByOne({_index_of(part): part for part in parts})
    chunks: dict[str, list[ChunkStorageMetadata]] = {key: [] for key in shapes}
    items = []
    for part in planner.parts.values():
        leading = len(part.index)
        offsets = torch.Size((*part.index, *(0 for _ in part.shape)))
        chunk = ChunkStorageMetadata(offsets, torch.Size((*(1 for _ in range(leading)), *part.shape)))
        chunks[part.key].append(chunk)
        data = TensorWriteData(chunk, TensorProperties(dtype=part.dtype), torch.Size(shapes[part.key]))
        items.append(WriteItem(_index_of(part), WriteItemType.SHARD, tensor_data=data))
    dtypes = {part.key: part.dtype for part in planner.parts.values()}
    metadata = Metadata(
        {
            key: TensorStorageMetadata(TensorProperties(dtype=dtypes[key]), torch.Size(shape), chunks[key])
            for key, shape in shapes.items()
        }
    )
    metadata.mcore_data = {}
    writer = _Writer(directory, single_file_per_rank=True, thread_count=1)
    writer.reset()
    writer.set_up_storage_writer(True)
    (plan,) = writer.prepare_global_plan([writer.prepare_local_plan(SavePlan(items))])
    try:
        results = writer.write_data(plan, planner).wait()
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        # PyTorch's archive was cut off, and it does not say by what.
        raise CheckpointError(
            "weights cannot be written", got=f"{directory}: {error}", remedy="free space, or write elsewhere"
        ) from None
    writer.finish(metadata, [results])
    torch.save({}, directory / "common.pt")
    (directory / "metadata.json").write_text(json.dumps(_FORMAT), encoding="utf-8")


class _Writer(FileSystemWriter):
    """Names neither the folder nor the time of writing, so that the same weights make the same files."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


def _index_of(part: TensorBlock) -> MetadataIndex:
    return MetadataIndex(part.key, torch.Size((*part.index, *(0 for _ in part.shape))))


class _OneByOne(SavePlanner):
    """Makes each tensor when the writer asks for it."""

    def __init__(self, parts: dict[MetadataIndex, TensorBlock]) -> None:
        self.parts = parts

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""

    def create_local_plan(self) -> SavePlan:
        raise AssertionError("the plan is made by write_native")

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        raise AssertionError("the plan is made by write_native")

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        part = self.parts[write_item.index]
        tensor = part.make()
        conserve(f"shape and type of {part.key}", (part.shape, part.dtype), (tensor.shape, tensor.dtype))
        return tensor.contiguous().reshape((*(1 for _ in part.index), *part.shape))
