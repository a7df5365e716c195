"""Averages of native models: exact, of any weights, and only of models that are alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from native_models import KEURAL, native_model
from typer.testing import CliRunner

from megatron_ko.artifacts.lineage import read
from megatron_ko.artifacts.native import Pretrained, find_pretrained
from megatron_ko.cli.convert import app
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.merge import merge
from megatron_ko.convert.native import NativeReader
from megatron_ko.errors import ConvertError


def tensors_of(source: Pretrained) -> dict[str, torch.Tensor]:
    reader = NativeReader(source.weights)
    return {key: reader.read(key) for key in reader.shapes}


@pytest.mark.parametrize(("weights", "dtype"), [(None, torch.float32), ((0.2, 0.5, 0.3), torch.bfloat16)])
def test_every_number_is_the_mean(weights: tuple[float, ...] | None, dtype: torch.dtype, tmp_path: Path) -> None:
    sources = [native_model(tmp_path / str(seed), KEURAL, seed, dtype=dtype) for seed in range(3)]
    isolated(merge, sources, tmp_path / "soup", weights)
    soup = find_pretrained(tmp_path / "soup")
    assert soup.model == sources[0].model
    shares = weights or (1 / 3,) * 3
    merged, parts = tensors_of(soup), [tensors_of(source) for source in sources]
    assert merged.keys() == parts[0].keys()
    for key, tensor in merged.items():
        expected = sum(share * part[key].double() for share, part in zip(shares, parts, strict=True))
        assert isinstance(expected, torch.Tensor) and tensor.equal(expected.to(dtype)), key
    record = read(tmp_path / "soup")
    assert record and [parent["weights"] for parent in record["parents"]] == [s.weights_hash for s in sources]
    assert isolated(merge, sources, tmp_path / "soup", weights).already
    with pytest.raises(ConvertError, match="of other weights"):
        isolated(merge, sources[:2], tmp_path / "soup", None)


def test_a_merge_is_a_native_model(tmp_path: Path) -> None:
    source = native_model(tmp_path / "a", KEURAL)
    isolated(merge, [source, source], tmp_path / "soup", (0.25, 0.75))
    soup = find_pretrained(tmp_path / "soup")
    assert all(tensor.equal(tensors_of(soup)[key]) for key, tensor in tensors_of(source).items())
    isolated(export_hf, soup, tmp_path / "hf")


def test_only_models_that_are_alike(tmp_path: Path, tokenizer_folder: Callable[[str], Path]) -> None:
    unigram, bpe = tokenizer_folder("unigram"), tokenizer_folder("byte-bpe")
    one = native_model(tmp_path / "one", {"vocab_size": 640}, tokenizer=unigram)
    others: dict[str, tuple[dict[str, Any], Path | None]] = {
        "networks.*ffn_hidden_size 96 instead of 80": ({"ffn_hidden_size": 96}, unigram),
        "networks.*rope": ({"rope": {"theta": 1e4}}, unigram),
        "networks.*norm_eps": ({"norm_eps": 1e-6}, unigram),
        "tokenizers": ({}, bpe),
    }
    for number, (named, (fields, tokenizer)) in enumerate(others.items()):
        other = native_model(tmp_path / str(number), {"vocab_size": 640, **fields}, tokenizer=tokenizer)
        with pytest.raises(ConvertError, match=f"(?s)different {named}"):
            merge([one, other], tmp_path / "soup")
    nan = float("nan")
    for sources, weights in (
        ([one], None), ([one, one], (0.5, 0.4)), ([one, one], (1.0,)), ([one, one], (nan, 0.5)),
        ([one, one], (1.5, -0.5)),
    ):  # fmt: skip
        with pytest.raises(ConvertError):
            merge(sources, tmp_path / "soup", weights)
    assert not (tmp_path / "soup").exists()


def invoke(words: list[str]) -> int:
    return CliRunner().invoke(app, words).exit_code


def test_the_verb(tmp_path: Path) -> None:
    for seed in range(2):
        native_model(tmp_path / str(seed), {}, seed)
    folders = [str(tmp_path / "0"), str(tmp_path / "1"), str(tmp_path / "soup")]
    assert isolated(invoke, ["merge", *folders, "--weights", "0.25", "0.75"]) == 0
    assert (read(tmp_path / "soup") or {})["options"] == {"weights": [0.25, 0.75]}
    assert invoke(["merge", "--weights", "0.25", "0.75", *folders]) == 0  # the same, said first
    assert invoke(["merge", folders[0]]) == 2
