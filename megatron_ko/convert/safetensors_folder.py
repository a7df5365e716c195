"""Folders of safetensors files: shapes without reading, tensors one at a time, and writing in shards with an index."""

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_ko.errors import ConvertError, conserve

INDEX = "model.safetensors.index.json"
_ROTARY = ".self_attn.rotary_emb.inv_freq"
_OPEN = 8  # files that are open at a time
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class SafetensorsFolder:
    """The tensors of a Hugging Face folder, wherever in its files they are. A context manager.

    Args:
        folder: with model.safetensors, or shards and their index.

    Raises:
        ConvertError: there are no such files, or the index and the files disagree.
    """

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._open: OrderedDict[Path, tuple[ExitStack, safe_open]] = OrderedDict()
        for path in _files_of(folder):
            handle = self._handle(path)
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                if name in self._places:
                    raise ConvertError("two files hold the same tensor", got=f"{name} in {folder}")
                stored = handle.get_slice(name)
                self._places[name] = path
                self._shapes[name], self._dtypes[name] = tuple(stored.get_shape()), stored.get_dtype()
        _check_index(folder, self._places)

    def _handle(self, path: Path) -> safe_open:
        """A file, opened; of those opened before it only the last few stay, because a process may have few."""
        if path not in self._open:
            stack = ExitStack()
            try:
                self._open[path] = (stack, stack.enter_context(safe_open(path, framework="pt")))
            except (SafetensorError, OSError) as error:
                raise ConvertError("a weight file cannot be read", got=f"{path}: {error}") from error
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(path)
        return self._open[path][1]

    def __enter__(self) -> "SafetensorsFolder":
        return self

    def __exit__(self, *_: object) -> None:
        for stack, _handle in self._open.values():
            stack.close()
        self._open.clear()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight."""
        return {name: shape for name, shape in self._shapes.items() if not name.endswith(_ROTARY)}

    @property
    def rotary(self) -> list[str]:
        """Rotary frequencies, which older folders hold although the configuration gives them; they are not weights."""
        return [name for name in self._places if name.endswith(_ROTARY)]

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor.

        Raises:
            ConvertError: it is none that weights are trained in, as of a quantised model.
        """
        stored = self._dtypes[name]
        if stored not in _DTYPES:
            raise ConvertError(
                "weights of a type that is not supported", got=f"{stored} in {name}", expected=[*_DTYPES]
            )
        return _DTYPES[stored]

    def read(self, name: str) -> Tensor:
        """One tensor."""
        tensor: Tensor = self._handle(self._places[name]).get_tensor(name)
        return tensor


def _check_index(folder: Path, places: Mapping[str, Path]) -> None:
    """The index, where there is one, names the tensors that are there, each in its file: transformers goes by it."""
    if not (folder / INDEX).is_file():
        return
    named: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    absent = [name for name, file in named.items() if name not in places or places[name].name != file]
    unnamed = [name for name in places if name not in named]
    if absent or unnamed:
        first = f"{absent[0]} is not in {named[absent[0]]}" if absent else f"{unnamed[0]} is not in the index"
        raise ConvertError(
            "the index and the weight files disagree",
            got=f"{folder / INDEX}: {len(absent) + len(unnamed)} tensors; {first}",
            expected="an entry for every tensor, naming the file that holds it",
            remedy="download or save the folder again",
        )


def _files_of(folder: Path) -> list[Path]:
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.is_file() and single.is_file():
        raise ConvertError(
            "the folder holds two sets of weights", got=f"{single} and {index}", expected="one of them",
            remedy="move away the one that is old",
        )  # fmt: skip
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConvertError("the index of the weights is damaged", got=f"{index}: {error!r}") from None
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ConvertError("a weight file is missing", got=f"{folder / missing[0]}", expected=f"all of {names}")
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    pickled = [path.name for path in folder.glob("*.bin")]
    raise ConvertError(
        "there are no safetensors in the folder",
        got=f"{folder}" + (f" with {pickled[0]}" if pickled else ""),
        expected=f"model.safetensors, or {INDEX} and its files",
        remedy="save it again with transformers: save_pretrained writes safetensors" if pickled else None,
    )


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], sizes: dict[str, int], limit: int) -> list[Path]:
    """Write tensors in their order into files of at most ``limit`` bytes (one tensor may be larger).

    Args:
        folder: an existing one.
        tensors: names and tensors, made while they are written.
        sizes: bytes of every tensor that will come, in the same order.
        limit: bytes of one file.
    """
    groups = list(groups_of(sizes, limit))
    stream, paths, places = iter(tensors), [], {}
    for number, names in enumerate(groups, 1):
        several = len(groups) > 1
        path = folder / (f"model-{number:05d}-of-{len(groups):05d}.safetensors" if several else "model.safetensors")
        content = {}
        for expected in names:
            name, tensor = next(stream)
            conserve("names of tensors", expected, name)
            content[name] = tensor.contiguous()
        try:
            save_file(content, path, metadata={"format": "pt"})
        except SafetensorError as error:  # of the system, with its number only in the text
            raise ConvertError(
                "a weight file cannot be written", got=f"{path}: {error}", remedy="free space, or write elsewhere"
            ) from None
        path.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        places.update(dict.fromkeys(names, path.name))
        paths.append(path)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return paths


def _umask() -> int:
    os.umask(mask := os.umask(0o022))
    return mask


def groups_of(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names of the tensors of each file."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    yield group


def bytes_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    return int(torch.Size(shape).numel()) * dtype.itemsize
