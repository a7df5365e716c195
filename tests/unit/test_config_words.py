"""What is said about mistakes in run files that people make who know other systems."""

import os
import re
from pathlib import Path

import pytest
import yaml

from megatron_ko.config import RunConfig, dump, load_config
from megatron_ko.config.foreign_names import FOREIGN_NAMES
from megatron_ko.config.tree import field_at
from megatron_ko.errors import ConfigError, DataError
from megatron_ko.storage.files import explain_disk_errors

RUN = """
run: {dir: run}
model: {num_layers: 1, hidden_size: 8, ffn_hidden_size: 8, num_attention_heads: 1, vocab_size: 8,
        max_position_embeddings: 8}
data: {tokenizer: nowhere, sources: [{prefix: nowhere}], sequence_length: 8}
optim: {lr: 1.0e-5, eps: 1.0e-20}
training: {steps: 1, global_batch_size: 1}
"""


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "run.yaml", overrides)
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_a_foreign_name_is_none_of_ours_and_stands_for_one_of_ours(name: str) -> None:
    path = re.split("[,;]", FOREIGN_NAMES[name])[0]
    assert field_at(RunConfig, path)
    section = path.rpartition(".")[0]
    with pytest.raises(KeyError):
        field_at(RunConfig, f"{section}.{name}")


def test_a_name_of_another_system_is_translated(tmp_path: Path) -> None:
    told = refusal(tmp_path, RUN, "optim.min_lr=1.0e-5", "model.num_hidden_layers=4")
    assert "its name here is optim.min_lr_ratio, a share of optim.lr: min_lr / lr" in told
    assert "its name here is model.num_layers" in told


def test_a_misspelt_key_is_one_problem(tmp_path: Path) -> None:
    told = refusal(tmp_path, RUN.replace("hidden_size: 8, ffn", "hidden: 8, ffn"))
    assert told.startswith("1 problem in ") and "did you mean 'model.hidden_size'?" in told
    told = refusal(tmp_path, RUN.replace("hidden_size: 8, ffn", "entirely_different: 8, ffn"))
    assert told.startswith("2 problems in ")


def test_a_key_that_stands_twice_is_told_in_our_words(tmp_path: Path) -> None:
    told = refusal(tmp_path, RUN + "optim: {lr: 1.0}\n")
    assert "a key appears twice" in told and "optim, again in line 8" in told and "remove one" in told
    assert "ruamel" not in told and "allow_duplicate_keys" not in told


def test_the_resolved_configuration_means_the_same_to_other_readers(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    config = load_config(tmp_path / "run.yaml")
    text = dump(config)
    assert "lr: 1.0e-05" in text and "eps: 1.0e-20" in text
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config


def test_a_folder_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.cache_dir"), explain_disk_errors(tmp_path, "set data.cache_dir"):
        raise PermissionError(13, os.strerror(13), str(tmp_path))
