"""Random states of a rank: seeding, saving and restoring."""

import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed

from megatron_ko.parallel.groups import Groups
from megatron_ko.parallel.platform import get_platform

# Strides that keep the seeds of stages and replicas distinct from each other, and from the offsets that megatron-core
# adds within a model-parallel group (2718 + tensor rank, 1024 + 100 * expert rank).
_STAGE_STRIDE = 100_003
_REPLICA_STRIDE = 10_000_019


def seed_everything(seed: int, groups: Groups) -> None:
    """Seed python, numpy, torch and megatron-core's tracker.

    Tensor-parallel ranks draw the same numbers where they must (dropout outside split regions), and different ones
    where the tensor is split. Pipeline stages, data-parallel replicas and parts of a sequence draw different dropout
    masks. Initial weights do not depend on these states (``models/initialise.py``).
    """
    replica = groups.dp_rank * groups.cp_size + groups.cp_rank
    own = seed + _STAGE_STRIDE * groups.pp_rank + _REPLICA_STRIDE * replica
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)
    model_parallel_cuda_manual_seed(own, force_reset_rng=True)


def rng_state() -> dict[str, Any]:
    """Every random state of this rank, in plain types and tensors that ``torch.load(weights_only=True)`` accepts."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "tracker": {name: state.clone() for name, state in get_cuda_rng_tracker().get_states().items()},
    }
    if get_platform().device_type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore a state returned by ``rng_state``."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states({name: state.clone() for name, state in state["tracker"].items()})
    if get_platform().device_type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
