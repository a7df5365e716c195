"""Details of Hugging Face folders: where generation ends, the index of the shards, types, modes, many files."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from isolated import isolated
from native_models import native_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.convert.safetensors_folder import INDEX, SafetensorsFolder
from megatron_ko.errors import ConvertError


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in five files, without a tokenizer."""
    base = tmp_path_factory.mktemp("small")
    first = native_model(base / "first", {"num_layers": 2})
    os.umask(before := os.umask(0o022))
    isolated(export_hf, first, base / "hf", None, 60_000, "quick")
    os.umask(before)
    return base / "hf"


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_both_names_of_the_type_are_written(hugging_face: Path) -> None:
    config = json.loads((hugging_face / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weight_files_have_the_mode_of_any_file(mask: int, mode: int, hugging_face: Path, tmp_path: Path) -> None:
    source = find_pretrained(hugging_face.parent / "first")
    before = os.umask(mask)
    try:
        isolated(export_hf, source, tmp_path / "hf", None, 2 << 30, "quick")
    finally:
        os.umask(before)
    assert (tmp_path / "hf/model.safetensors").stat().st_mode & 0o777 == mode


def test_begin_and_end_are_kept_without_a_tokenizer(hugging_face: Path, tmp_path: Path) -> None:
    source = copy(hugging_face, tmp_path / "hf")
    (source / "lineage.json").unlink()
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7], "top_k": 3}))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "bos_token_id": 1, "eos_token_id": 5}))
    isolated(import_hf, source, tmp_path / "native", "quick")
    isolated(export_hf, find_pretrained(tmp_path / "native"), tmp_path / "again", depth="quick")
    config, generation = (
        json.loads((tmp_path / "again" / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, [5, 7])
    assert generation == {"bos_token_id": 1, "eos_token_id": [5, 7], "top_k": 3}


def test_only_config_json_names_the_end(hugging_face: Path, tmp_path: Path) -> None:
    source = copy(hugging_face, tmp_path / "hf")
    (source / "lineage.json").unlink()
    (source / "generation_config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "bos_token_id": 1, "eos_token_id": 2}))
    isolated(import_hf, source, tmp_path / "native", "quick")
    isolated(export_hf, find_pretrained(tmp_path / "native"), tmp_path / "again", depth="quick")
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_an_index_that_names_an_absent_tensor_is_refused(hugging_face: Path, tmp_path: Path) -> None:
    source = copy(hugging_face, tmp_path / "hf")
    index = json.loads((source / INDEX).read_text())
    names = index["weight_map"]
    first, other = next(iter(names)), next(file for file in names.values() if file != names[next(iter(names))])
    for changed, told in (
        ({**names, "model.layers.9.gone.weight": other}, "model.layers.9.gone.weight is not in"),
        ({**names, first: other}, f"{first} is not in {other}"),
        ({name: file for name, file in names.items() if name != first}, f"{first} is not in the index"),
    ):
        (source / INDEX).write_text(json.dumps({**index, "weight_map": changed}))
        with pytest.raises(ConvertError, match="the index and the weight files disagree") as caught:
            import_hf(source, tmp_path / "native")
        assert told in str(caught.value)


def test_quantised_weights_have_a_remedy_that_helps(hugging_face: Path, tmp_path: Path) -> None:
    source = copy(hugging_face, tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    quantised = {"quantization_config": {"quant_method": "bitsandbytes"}}
    (source / "config.json").write_text(json.dumps({**config, **quantised}))
    with pytest.raises(ConvertError, match=r"quantization_config(?s:.*)dequantise it and save it again"):
        import_hf(source, tmp_path / "native")


def read_with_few_files(folder: Path) -> int:
    """Read every tensor twice where a process may have 60 files, some of which are taken already."""
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 20, in_use + 20))
    with SafetensorsFolder(folder) as tensors:
        return sum(int(tensors.read(name).sum()) for _ in range(2) for name in tensors.shapes)


def test_more_shards_than_a_process_may_open(tmp_path: Path) -> None:
    names = {f"t{number}": f"model-{number:05d}-of-00065.safetensors" for number in range(65)}
    for name, file in names.items():
        save_file({name: torch.ones(2)}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    assert isolated(read_with_few_files, tmp_path) == 2 * 2 * 65


def test_a_folder_in_several_files_is_whole(hugging_face: Path) -> None:
    paths = sorted(hugging_face.glob("model-*.safetensors"))
    assert len(paths) > 3
    with SafetensorsFolder(hugging_face) as tensors:
        for path in paths:
            with safe_open(path, framework="pt") as one:
                assert set(one.keys()) <= tensors.shapes.keys()
            assert all(tensors.read(name).equal(tensor) for name, tensor in load_file(path).items())
