"""Several arrays in one file, read back as views of the mapped file: nothing is loaded that is not used.

Eight bytes (the length of the header), the header as JSON, then the arrays, each at a multiple of 64 bytes.
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_ALIGNED = 64


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a new file. The same arrays give the same bytes."""
    described: dict[str, object] = {}
    position = 0
    for name, array in arrays.items():
        described[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": position}
        position = _aligned(position + array.nbytes)
    header = json.dumps(described).encode()
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        start = _aligned(8 + len(header))
        for name, array in arrays.items():
            stream.seek(start + described[name]["offset"])  # type: ignore[index]
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        stream.truncate(start + position)


def open_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, read-only."""
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(mapped[:8], "little")
    start = _aligned(8 + length)
    arrays = {}
    for name, what in json.loads(mapped[8 : 8 + length]).items():
        dtype, shape = np.dtype(what["dtype"]), tuple(what["shape"])
        count = int(np.prod(shape))
        flat = np.frombuffer(mapped, dtype, count, start + what["offset"]) if count else np.empty(0, dtype)
        arrays[name] = flat.reshape(shape)
    return arrays


def _aligned(position: int) -> int:
    return -(-position // _ALIGNED) * _ALIGNED
