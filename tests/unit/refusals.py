"""A small run, and what a configuration is refused with."""

from pathlib import Path
from textwrap import indent

import pytest

from megatron_ko.config import load_config
from megatron_ko.errors import ConfigError

MODEL = """
num_layers: 4
hidden_size: 64
ffn_hidden_size: 128
num_attention_heads: 4
num_query_groups: 2
vocab_size: 1000
max_position_embeddings: 128
"""


def run_text(model: str) -> str:
    """A run file around a model section."""
    return f"""
run: {{dir: out}}
model: {model}
data: {{tokenizer: tok, sources: [{{prefix: shards/a}}], sequence_length: 64}}
optim: {{lr: 3e-4}}
training: {{steps: 10, global_batch_size: 4}}
"""


RUN = run_text(indent(MODEL, "  "))


def problems(run_file: Path, *overrides: str) -> str:
    """All that is told about a run file with overrides; it must be refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(run_file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)
