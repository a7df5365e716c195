"""An export without weights: keys, shapes and bytes of a network of any size, on tensors without data."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_ko.artifacts.native import Pretrained
from megatron_ko.config import ModelConfig
from megatron_ko.convert.engines import peer_class
from megatron_ko.convert.families import family_of, rules_of
from megatron_ko.convert.gates import Gate, require_gates, running
from megatron_ko.convert.hf_files import write_config
from megatron_ko.convert.mapping import TensorRule, blocks, native_shapes, other_shapes
from megatron_ko.convert.safetensors_folder import bytes_of, groups_of
from megatron_ko.plan.params import count_parameters


@dataclass(frozen=True)
class DryRun:
    """What an export would write.

    Attributes:
        architecture: class in transformers.
        native, tensors: tensors of ours, and of the folder.
        parameters: numbers in them.
        bytes: of all weights.
        files: of weights.
        gates: what was compared.
    """

    architecture: str
    native: int
    tensors: int
    parameters: int
    bytes: int
    files: int
    gates: tuple[Gate, ...]


def dry_run(model: ModelConfig, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = 2 << 30) -> DryRun:
    """Map every block of a network there and back, and compare with the class in transformers.

    Raises:
        ConvertError: the table does not fit the network, or the class another one.
    """
    rules = rules_of(model)
    shapes, native = other_shapes(rules, model), native_shapes(rules, model)
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    expected = count_parameters(model).total
    with running("transformers"):
        peer = _peer_shapes(model)
    gates = (
        _blocks(rules, model),
        Gate("parameters", numbers, numbers == expected, "" if numbers == expected else f"expected {expected:,}"),
        _keys(shapes, peer),
    )
    require_gates(gates)
    sizes = {name: bytes_of(shape, dtype) for name, shape in shapes.items()}
    files = len(list(groups_of(sizes, shard_bytes)))
    return DryRun(family_of(model).architecture, len(native), len(shapes), numbers, sum(sizes.values()), files, gates)


def _blocks(rules: Sequence[TensorRule], model: ModelConfig) -> Gate:
    """Every block of ours keeps its shapes when it is split and joined again."""
    tried, wrong = 0, []
    for block in blocks(rules, model):
        whole = torch.empty(block.mapping.shape, dtype=torch.bfloat16, device="meta")
        parts = block.mapping.split(whole)
        tried += 1
        if (
            tuple(tuple(part.shape) for part in parts) != block.mapping.shapes
            or block.mapping.join(parts).shape != whole.shape
        ):
            wrong.append(f"{block.native}{list(block.index)}")
    return Gate("blocks there and back", tried, not wrong, ", ".join(wrong[:5]))


def _keys(shapes: dict[str, tuple[int, ...]], peer: dict[str, tuple[int, ...]]) -> Gate:
    """transformers' parameters have our names and shapes; experts that it stacks count by their numbers."""
    alike = {name for name in shapes if peer.get(name) == shapes[name]}
    ours = sum(torch.Size(shape).numel() for name, shape in shapes.items() if name not in alike)
    theirs = sum(torch.Size(shape).numel() for name, shape in peer.items() if name not in alike)
    stacked = len(shapes) - len(alike)
    found = f"{stacked} of experts, which it stacks while it loads" if stacked else "each by name and shape"
    plain = [name for name in {*shapes} - alike if ".experts." not in name and ".gate." not in name]
    if ours != theirs or plain:
        return Gate("keys in transformers", len(shapes), False, f"{ours:,} numbers here, {theirs:,} there: {plain[:5]}")
    return Gate("keys in transformers", len(shapes), True, found)


def _peer_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Parameters of the class that config.json names, built on the meta device."""
    with tempfile.TemporaryDirectory(prefix="dry-run-") as temporary:
        folder = Path(temporary)
        write_config(folder, Pretrained(model, folder, None, folder), "bfloat16")
        kind, more = peer_class(folder, ours=True)
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, **more)
        with torch.device("meta"):
            network = kind.from_config(config, **more)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
