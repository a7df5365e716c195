"""What several of these tests share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from megatron_ko.convert.gates import Gate
from megatron_ko.convert.gguf.export import GgufExport

Folder = Callable[..., Path]


def gate(exported: GgufExport, name: str) -> Gate:
    """One gate of an export."""
    (found,) = [one for one in exported.proof.gates if one.name == name]
    return found


def train(network: Any, batches: Iterable[dict[str, Any]], path: Path) -> float:
    """Train transformers' network, put it in place of the weights of a folder, and give the last loss."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    loss = torch.tensor(torch.inf)
    for batch in batches:
        optimizer.zero_grad()
        loss = network(**batch).loss
        loss.backward()
        optimizer.step()
    for shard in path.glob("model*"):
        shard.unlink()
    network.save_pretrained(path)
    return float(loss)
