"""What a proof costs: it holds the stored weights of one model, a block of wider ones, and never the same twice."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from isolated import isolated
from native_models import native_model
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ko.artifacts.native import Pretrained
from megatron_ko.convert.engines import Computing
from megatron_ko.models.inference import blueprint_of, load_for_inference


class Largest(TorchDispatchMode):
    """The most bytes that one call of each operator gave, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        if isinstance(given, torch.Tensor) and not function.is_view:
            name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
            self.found[name] = max(self.found.get(name, 0), given.nbytes)
        return given


class Small(torch.nn.Module):
    """An embedding, a norm and a projection, in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(3000, 512)
        self.norm = torch.nn.RMSNorm(512)
        self.out = torch.nn.Linear(512, 3000)
        self.bfloat16()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(self.norm(self.words(tokens)))
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_a_wider_type_takes_a_block_of_the_weights_and_is_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, tokens = Small(), torch.arange(9).unsqueeze(0)
    wanted = Small().to(torch.float64)
    wanted.load_state_dict(network.state_dict())
    Computing(network, dtype)
    with Largest() as seen:
        found = network(tokens)
    whole = 3000 * 512 * dtype.itemsize
    assert max(seen.found.values()) <= whole / 2, seen.found
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted(tokens), rtol=1e-5, atol=1e-5)


def test_a_model_is_freed_when_its_part_of_the_proof_is_done() -> None:
    """Before the other one is loaded, not when Python next looks for cycles."""
    network = Small()
    computing, seen = Computing(network, torch.float32), weakref.ref(network)
    gc.disable()
    try:
        del network
        assert seen() is None
    finally:
        gc.enable()
    assert computing.dtype == torch.float32


def joined_while_loading(found: Pretrained) -> tuple[int, int]:
    """Most bytes that were joined from parts, and the bytes of a gate and up projection."""
    with Largest() as seen:
        network: Any = load_for_inference(blueprint_of(found.model), found.weights)
    return seen.found.get("cat", 0), network.decoder.layers[0].mlp.linear_fc1.weight.nbytes


def test_weights_are_read_in_place(tmp_path: Path) -> None:
    """Gate and up projections, which ranks hold halves of, are most of a model; joined they would be there twice."""
    joined, projection = isolated(joined_while_loading, native_model(tmp_path / "native", {}))
    assert joined < projection
