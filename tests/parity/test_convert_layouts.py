"""What transformers holds, at every layout: loaded, saved and exported again it is the same, and computes the same."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import collect_from_ranks
from isolated import isolated
from megatron.core import dist_checkpointing
from native_models import KEURAL, native_model
from patience import PATIENCE
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_ko.artifacts.native import Pretrained, find_pretrained
from megatron_ko.config import ModelConfig, ParallelConfig
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_import import import_hf
from megatron_ko.convert.native import NativeReader
from megatron_ko.models.blueprint import Blueprint
from megatron_ko.models.build import build_model
from megatron_ko.models.inference import blueprint_of
from megatron_ko.models.weights import load_weights, sharded_weights
from megatron_ko.parallel.groups import Groups, destroy, initialise
from megatron_ko.parallel.seed import seed_everything
from megatron_ko.train.tensor_files import InProcessSave

MOE = {"num_experts": 4, "top_k": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_embeddings": True},
    "qwen3": {"family": "qwen3"},
    "mixtral": {"family": "mixtral", "moe": MOE, "windows": (20,) * 4},
    "qwen3_moe": {"family": "qwen3_moe", "moe": MOE},
    "keural": KEURAL,
}
LAYOUTS: dict[str, dict[str, int]] = {
    "tensor 2": {"tensor": 2},
    "pipeline 2": {"pipeline": 2},
    "expert 2": {"expert": 2},
    "tensor 2, pipeline 2": {"tensor": 2, "pipeline": 2},
}
# By family: the folder that the ranks saved, and the logits of each rank, None where it has not the last layer.
Through = dict[str, tuple[Path, list[torch.Tensor | None]]]
TOKENS = torch.randint(203, (2, 64), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each family a folder with ``first``, native, ``hf``, made of it, and ``native``, made of that."""
    found = {}
    for name, fields in FAMILIES.items():
        found[name] = tmp_path_factory.mktemp(name)
        native_model(found[name] / "first", fields)
    isolated(convert_both_ways, list(found.values()))
    return found


def convert_both_ways(folders: list[Path]) -> None:
    for folder in folders:
        export_hf(find_pretrained(folder / "first"), folder / "hf")
        import_hf(folder / "hf", folder / "native")


def export_all(sources: list[Pretrained]) -> None:
    for source in sources:
        export_hf(source, source.origin / "hf")


@pytest.fixture(scope="module")
def ranks_of(start: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Through]:
    """What the ranks of a layout compute and save, made once: ``ranks_of("tensor 2")``."""

    @cache
    def through(layout: str) -> Through:
        names = [name for name, fields in FAMILIES.items() if "moe" in fields or "expert" not in LAYOUTS[layout]]
        native = [find_pretrained(start[name] / "native") for name in names]
        configs = [layout_of(source.model, LAYOUTS[layout]) for source in native]
        world = configs[0].parallel.model_size * LAYOUTS[layout].get("expert", 1)
        base = tmp_path_factory.mktemp("saved")
        saves = [base / name / "weights" for name in names]
        ranks = collect_from_ranks(through_ranks, world, configs, [source.weights for source in native], saves)
        return {name: (saves[number], [rank[number] for rank in ranks]) for number, name in enumerate(names)}

    return through


def layout_of(model: ModelConfig, layout: dict[str, int]) -> Blueprint:
    parallel = ParallelConfig.model_validate({**layout, "sequence_parallel": layout.get("tensor", 1) > 1})
    return replace(blueprint_of(model), parallel=parallel)


def through_ranks(configs: list[Blueprint], loads: list[Path], saves: list[Path]) -> list[torch.Tensor | None]:
    """Load, compute and save each model on these ranks; this rank's part of the logits where it has the last layer."""
    found = []
    for config, load, save in zip(configs, loads, saves, strict=True):
        groups = initialise(config.parallel, timeout_s=PATIENCE)
        seed_everything(1, groups)
        (chunk,) = build_model(config, groups, 1)
        load_weights([chunk], load)
        found.append(forward(chunk.eval(), config, groups))
        if groups.rank == 0:
            save.mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(sharded_weights([chunk]), str(save), InProcessSave())
        destroy()
    return found


@torch.no_grad()
def forward(chunk: torch.nn.Module, config: Blueprint, groups: Groups) -> torch.Tensor | None:
    stages = groups.pg.pp
    if not groups.is_first_stage:
        split = groups.tp_size if config.parallel.sequence_parallel else 1
        hidden = torch.empty(TOKENS.shape[1] // split, TOKENS.shape[0], config.model.hidden_size)  # [s, b, h]
        dist.recv(hidden, group=stages, group_src=groups.pp_rank - 1)
        chunk.set_input_tensor(hidden)
    output: torch.Tensor = chunk(TOKENS, torch.arange(TOKENS.shape[1]).expand_as(TOKENS), None)
    if groups.is_last_stage:
        return output
    dist.send(output.contiguous(), group=stages, group_dst=groups.pp_rank + 1)
    return None


def same_weights(one: Path, other: Path, rows: int) -> None:
    """Rows that pad the vocabulary are nobody's."""
    first, second = NativeReader(one), NativeReader(other)
    assert first.shapes.keys() == second.shapes.keys()
    for key in first.shapes:
        pair = [reader.read(key) for reader in (first, second)]
        if "word_embeddings" in key or "output_layer" in key:
            pair = [part[:rows] for part in pair]
        assert pair[0].equal(pair[1]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_native_to_hugging_face_and_back(name: str, start: dict[str, Path]) -> None:
    first, again = (find_pretrained(start[name] / part) for part in ("first", "native"))
    assert again.model == first.model
    same_weights(first.weights, again.weights, 203)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_and_computes_what_transformers_does(
    layout: str, start: dict[str, Path], ranks_of: Callable[[str], Through]
) -> None:
    for name, (saved, logits) in ranks_of(layout).items():
        same_weights(find_pretrained(start[name] / "native").weights, saved, 203)
        peer = AutoModelForCausalLM.from_pretrained(start[name] / "hf", trust_remote_code=True, dtype="auto").eval()
        with torch.no_grad():
            expected = peer(TOKENS).logits
        parts = [part for part in logits if part is not None]
        whole = torch.cat(parts[: LAYOUTS[layout].get("tensor", 1)], dim=-1)[..., :203]
        assert expected.std() > 0.1
        assert (whole - expected).abs().max() < 1e-4, name


def test_what_a_layout_saved_exports_to_the_same_bytes(
    start: dict[str, Path], ranks_of: Callable[[str], Through]
) -> None:
    saved = {name: weights for name, (weights, _) in ranks_of("tensor 2, pipeline 2").items()}
    assert saved.keys() == FAMILIES.keys()
    spread = [
        Pretrained(find_pretrained(start[name] / "native").model, weights, None, weights.parent)
        for name, weights in saved.items()
    ]
    isolated(export_all, spread)
    for name, weights in saved.items():
        before, after = (load_file(base / "hf/model.safetensors") for base in (start[name], weights.parent))
        assert before.keys() == after.keys() and all(after[key].equal(tensor) for key, tensor in before.items())
