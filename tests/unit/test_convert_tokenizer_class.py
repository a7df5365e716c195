"""A folder whose tokenizer_class is not what its tokenizer.json needs: the file decides, and the name is corrected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from isolated import isolated
from native_models import EXPERTS, SIZES
from peer_models import transformers_model

from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.config import ModelConfig
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokenizer.check import agreement

TokenizerFolder = Callable[[str], Path]
NETWORKS = {"llama": {}, "mixtral": {"family": "mixtral", "moe": EXPERTS}}


def folder_of(base: Path, family: str, tokenizer: Path, named: str) -> Path:
    """A folder of transformers' with a tokenizer and the class that it is said to have."""
    torch.manual_seed(1)
    fields = {**SIZES, "num_layers": 2, "vocab_size": load_tokenizer(tokenizer).vocab_size, **NETWORKS[family]}
    transformers_model(ModelConfig.model_validate(fields)).save_pretrained(base)
    for path in tokenizer.iterdir():
        if path.name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(path, base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": named}))
    return base


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("named", ["GPT2Tokenizer", "LlamaTokenizer"])
def test_tokenizer_json_decides(family: str, named: str, tmp_path: Path, tokenizer_folder: TokenizerFolder) -> None:
    source = folder_of(tmp_path / "hf", family, tokenizer_folder("byte-bpe"), named)
    proof = isolated(import_hf, source, tmp_path / "native")
    ours, beside = load_tokenizer(source), tmp_path / "native/tokenizer"
    lies = not agreement(ours, source)[0].ok
    assert lies or (named, family) != ("GPT2Tokenizer", "llama")  # transformers sees through some of the others
    said = [gate.found for gate in proof.gates if gate.name == "class of the tokenizer"]
    assert bool(said) == lies and all(f"{named} gives other ids" in found for found in said)
    isolated(export_hf, find_pretrained(tmp_path / "native"), tmp_path / "again")
    for folder in (beside, tmp_path / "again"):  # without config.json and with it
        assert all(result.ok for result in agreement(ours, folder))
