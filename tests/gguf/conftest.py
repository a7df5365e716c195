"""Folders to convert. These tests need llama.cpp, whose compilation takes minutes: `make test-gguf` does both."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_tests import Folder
from peer_models import transformers_model

from megatron_ko.config import ModelConfig

SIZES = {
    "num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4, "num_query_groups": 2,
    "head_dim": 32, "vocab_size": 640, "max_position_embeddings": 300, "rope": {"theta": 5e4}, "init_std": 0.1,
}  # fmt: skip
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run these tests only where they were asked for; there, nothing is skipped."""
    asked = any("tests/gguf" in str(argument) for argument in config.args)
    reason = "llama.cpp takes minutes to compile: make test-gguf compiles it once and runs these tests"
    for item in items:
        if "tests/gguf/" in item.path.as_posix() and not asked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Callable[[str], Path]) -> Folder:
    """A Hugging Face folder as hf-export writes it, of random weights: ``folder(fields of the model)``."""

    def save(tokenizer: str = "byte-bpe", template: str | None = CHATML, **fields: Any) -> Path:
        torch.manual_seed(1)
        path = tmp_path / "hf"
        peer = transformers_model(ModelConfig.model_validate({**SIZES, **fields}))
        for parameter in peer.parameters():  # norms too, so that none can be lost
            parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1)
        peer.save_pretrained(path, max_shard_size="200KB")
        add_tokenizer(path, tokenizer_folder(tokenizer), template)
        return path

    return save


def add_tokenizer(path: Path, tokenizer: Path, template: str | None) -> None:
    """What hf-export carries over, and the end of an answer."""
    for file in tokenizer.iterdir():
        shutil.copyfile(file, path / file.name)
    ends = [5, 2] if template else 2
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": ends}))
    if template:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
