"""Indexed files are megatron-core's, byte for byte, both ways; damage is found before anything is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from megatron_ko.data.tokens.indexed import IndexedReader, IndexedWriter, bin_path, idx_path, token_dtype
from megatron_ko.errors import DataError


def write(prefix: Path, documents: list[np.ndarray], dtype: np.dtype, batch: int = 2) -> None:
    with bin_path(prefix).open("wb") as stream:
        writer = IndexedWriter(stream, dtype, prefix.parent)
        for start in range(0, len(documents), batch):
            part = documents[start : start + batch]
            lengths = np.array([document.size for document in part])
            writer.add(np.concatenate(part).astype(dtype), lengths)
        with idx_path(prefix).open("wb") as index:
            writer.write_index(index)
            assert index.tell() == writer.index_bytes


def write_with_oracle(prefix: Path, documents: list[np.ndarray], dtype: np.dtype) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype.type)
    for document in documents:
        builder.add_document(torch.from_numpy(document.astype(np.int64)), [document.size])
    builder.finalize(f"{prefix}.idx")


DOCUMENTS = st.lists(arrays(np.int64, st.integers(0, 40), elements=st.integers(0, 65_499)), min_size=1, max_size=12)


@settings(max_examples=30)
@given(documents=DOCUMENTS, wide=st.booleans(), batch=st.integers(1, 5))
def test_both_ways_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, documents: list[np.ndarray], wide: bool, batch: int
) -> None:
    folder = tmp_path_factory.mktemp("indexed")
    dtype = np.dtype(np.int32 if wide else np.uint16)
    write(folder / "ours.v1", documents, dtype, batch)
    write_with_oracle(folder / "theirs", documents, dtype)
    for suffix in (".bin", ".idx"):
        assert (folder / f"ours.v1{suffix}").read_bytes() == (folder / f"theirs{suffix}").read_bytes()
    reader = IndexedReader(folder / "theirs")
    assert (reader.dtype, len(reader), reader.tokens) == (dtype, len(documents), sum(map(len, documents)))
    assert all(np.array_equal(reader[n], document) for n, document in enumerate(documents))
    assert reader.consistent()
    assert reader.largest_id() == max((int(d.max()) for d in documents if d.size), default=-1)
    if sum(map(len, documents)):  # numpy maps no empty file, so neither does megatron-core's reader
        oracle = IndexedDataset(str(folder / "ours.v1"))
        assert all(np.array_equal(oracle[n], document) for n, document in enumerate(documents))
        assert oracle.document_indices.tolist() == list(range(len(documents) + 1))


def test_dtype_follows_megatrons_rule() -> None:
    from megatron.core.datasets.indexed_dataset import DType

    for size in (100, 65_499, 65_500, 65_536, 200_000):
        assert token_dtype(size) == np.dtype(DType.optimal_dtype(size))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write(tmp_path / "data", [np.arange(n) for n in (5, 7, 1)], np.dtype(np.uint16))
    return tmp_path / "data"


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_truncated_and_foreign_files(prefix: Path, suffix: str) -> None:
    path = prefix.with_name(prefix.name + suffix)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0\0", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"damaged.*\{suffix}"):
            IndexedReader(prefix)
    path.unlink()
    with pytest.raises(DataError, match=rf"incomplete: no .*\{suffix}"):
        IndexedReader(prefix)


def test_a_file_of_another_kind(prefix: Path) -> None:
    idx_path(prefix).write_bytes(b"PK\x03\x04" + b"x" * 200)
    with pytest.raises(DataError, match="of another kind"):
        IndexedReader(prefix)
