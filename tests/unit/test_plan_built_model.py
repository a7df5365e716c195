"""The counts of `plan params` against the parameters of the built megatron-core model, on one rank and on two."""

from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_ko.config import ModelConfig, RunConfig, load_model_config
from megatron_ko.config.load import build
from megatron_ko.models.build import build_model
from megatron_ko.parallel.groups import initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.parallel.spawn import run_ranks
from megatron_ko.plan.params import count_parameters, padding_parameters

MODELS = Path(__file__).parents[2] / "configs" / "models"
GROUPS = {
    "embedding": "embedding",
    "self_attention": "attention",
    "mlp": "mlp",
    "norm": "norms",
    "output_layer": "output_layer",
}


def check_built(model: ModelConfig, tensor: int) -> None:
    tree = {
        "run": {"dir": "unused"},
        "model": model.model_dump(mode="json"),
        "parallel": {"tensor": tensor},
        "precision": {"dtype": "fp32"},
        "data": {"tokenizer": "unused", "sources": [{"prefix": "unused"}], "sequence_length": 8},
        "optim": {"lr": 1.0},
        "training": {"steps": 1, "global_batch_size": 1},
    }
    config = build(RunConfig, tree, origin="test")
    groups = initialise(config.parallel, 60)
    seed_everything(1, groups)
    found = dict.fromkeys(GROUPS.values(), 0)
    for name, parameter in build_model(config, groups)[0].named_parameters():
        group = "norms" if "norm" in name else next(group for part, group in GROUPS.items() if part in name)
        split = getattr(parameter, "tensor_model_parallel", False)
        found[group] += parameter.numel() * (dist.get_world_size() if split else 1)
    count = count_parameters(model)
    padding = padding_parameters(model, tensor)
    expected = dict(count.groups)
    expected["embedding"] += padding if model.tie_embeddings else padding // 2
    expected["output_layer"] += 0 if model.tie_embeddings else padding // 2
    assert found == expected
    assert sum(found.values()) == count.total + padding


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("demo-tiny", {}),
        ("demo-tiny", {"tie_embeddings": False, "vocab_size": 4001}),
        ("bori-140m", {"num_layers": 1, "num_attention_heads": 10, "num_query_groups": 2}),
        ("ko-1b", {"num_layers": 1, "vocab_size": 999, "hidden_size": 256, "ffn_hidden_size": 512}),
    ],
)
def test_equals_the_built_model(name: str, change: dict[str, object], tensor: int) -> None:
    model = load_model_config(MODELS / f"{name}.yaml").model_copy(update=change)
    assert run_ranks(check_built, tensor, (model, tensor), timeout_s=60) == 0
