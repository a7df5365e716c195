"""What the schema says of a path: bound to the weights or free, its default, and where paths stand."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from megatron_ko.config import ModelConfig, RunConfig
from megatron_ko.config.load import build
from megatron_ko.config.section import Resume, Section
from megatron_ko.config.tree import default_at, locate, resume_of
from megatron_ko.errors import ConfigError
from megatron_ko.train.resume import differences

BOUND = {
    "parallel.distributed_optimizer",
    *(f"optim.groups.{name}" for name in ("match", "lr_factor", "decay_factor")),  # saved moments come by group
    "precision.dtype",
    *(f"adapter.{name}" for name in ("kind", "rank", "alpha", "targets")),
    *(
        f"model.{name}"
        for name in (
            *("family", "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
            *("head_dim", "vocab_size", "rope.theta", "windows", "norm_eps", "tie_embeddings"),
            *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_max_position_embeddings"),
            *("rope.scaling.beta_fast", "rope.scaling.beta_slow", "rope.scaling.mscale", "rope.scaling.mscale_all_dim"),
            *("rope.scaling.low_freq_factor", "rope.scaling.high_freq_factor"),
            *("moe.num_experts", "moe.top_k", "moe.score", "moe.softmax_before_topk", "moe.topk_scale"),
            *("moe.shared_ffn_hidden_size", "moe.expert_bias"),
        )
    ),
}


def leaves(schema: type[Section], prefix: str = "") -> set[str]:
    found = set()
    for name in schema.model_fields:
        path = f"{prefix}{name}"
        below = [section for section in locate(RunConfig, path.split(".")).sections if issubclass(section, Section)]
        found |= {leaf for section in below for leaf in leaves(section, f"{path}.")} or {path}
    return found


def test_exactly_these_values_belong_to_the_weights() -> None:
    assert {path for path in leaves(RunConfig) if resume_of(RunConfig, path) is Resume.BOUND} == BOUND


def test_a_new_field_of_the_model_is_bound_until_it_is_marked() -> None:
    class Wider(ModelConfig):
        multiplier: float = 1.0
        noise: Annotated[float, Resume.FREE] = 0.0

    class Run(RunConfig):
        model: Wider

    assert resume_of(Run, "model.multiplier") is Resume.BOUND
    assert resume_of(Run, "model.noise") is Resume.FREE


def test_mappings_and_names_of_earlier_versions_are_as_their_section() -> None:
    assert resume_of(RunConfig, "launch.environment.NCCL_DEBUG") is Resume.SILENT
    assert resume_of(RunConfig, "training.gone") is Resume.FREE
    assert resume_of(RunConfig, "model.gone") is Resume.BOUND


def test_an_option_that_is_newer_than_a_checkpoint_had_its_default() -> None:
    saved = {"optim": {"lr": 0.1}, "data": {}}
    now = {"optim": {"lr": 0.1, "beta1": 0.9, "beta2": 0.5}, "data": {"split": [98.0, 2.0, 0.0]}}
    assert differences(saved, now) == {"optim.beta2": (0.95, 0.5)}
    assert default_at(RunConfig, "optim.beta1") == 0.9 and default_at(RunConfig, "optim.nothing") is None
    assert default_at(RunConfig, "optim.lr") is None


class Small(Section):
    kind: Literal["small"] = Field(description="Which.")
    size: int = 1


class Large(Section):
    kind: Literal["large"] = Field(description="Which.")
    folder: Path | None = None


class Holder(Section):
    part: Annotated[Small | Large, Field(discriminator="kind")] | None = None


def test_the_key_that_chooses_a_section_is_read_from_the_schema() -> None:
    with pytest.raises(ConfigError, match=r"part.kind\n[\s\S]*one of small, large[\s\S]*did you mean 'large'"):
        build(Holder, {"part": {"kind": "larg"}}, "here")
    with pytest.raises(ConfigError, match=r"part.siz\n[\s\S]*did you mean 'part.size'"):
        build(Holder, {"part": {"kind": "small", "siz": 3}}, "here")
