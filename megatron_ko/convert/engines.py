"""The two models of a proof, loaded one at a time: each takes the memory of its stored weights and computes in fp32."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import proxy

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from torch import Tensor

from megatron_ko.config import ModelConfig
from megatron_ko.convert.families.keural import TEMPLATES
from megatron_ko.models.inference import blueprint_of, load_for_inference
from megatron_ko.parallel.platform import get_platform

# Bytes of widened rows: they stay in a core's cache until they are multiplied, and memory gives only what is stored.
_BLOCK = 2 << 20


class Computing:
    """The type that a network computes in, whatever its weights are stored in.

    A wider type is exact. A linear layer widens a block of rows at a time, an embedding only the rows that it looks up;
    any other module, such as a norm, converts its own weights while it runs.

    Args:
        network: its weights keep their type.
        dtype: at first; ``dtype`` may be changed between passes.
    """

    def __init__(self, network: torch.nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._stored: dict[int, list[list[tuple[torch.nn.Parameter, Tensor]]]] = {}
        for module in network.modules():  # which hold no reference to themselves, so that a model is freed at once
            if isinstance(module, torch.nn.Linear):
                module.forward = partial(self._linear, proxy(module))
            elif isinstance(module, ColumnParallelLinear | RowParallelLinear):
                module.forward = partial(self._parallel_linear, proxy(module))
            elif isinstance(module, torch.nn.Embedding | VocabParallelEmbedding):
                module.register_forward_hook(self._widen_rows)
            elif next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(self._widen)
                module.register_forward_hook(self._restore, always_call=True)

    def _linear(self, module: torch.nn.Linear, given: Tensor) -> Tensor:
        found = self._product(given, module.weight)
        return found if module.bias is None else found + module.bias.to(self.dtype)

    def _parallel_linear(
        self, module: torch.nn.Module, given: Tensor, weight: Tensor | None = None, **_: object
    ) -> tuple[Tensor, None]:
        return self._product(given, module.weight if weight is None else weight), None

    def _product(self, given: Tensor, weight: Tensor) -> Tensor:
        """[..., i] and [o, i] -> [..., o]."""
        if weight.dtype == self.dtype:
            return F.linear(given, weight)
        rows = given.flatten(0, -2)
        found = rows.new_empty(len(rows), len(weight))
        number = max(1, _BLOCK // (weight.shape[1] * self.dtype.itemsize))
        for part, block in zip(found.split(number, dim=1), weight.split(number), strict=True):
            part.copy_(F.linear(rows, block.to(self.dtype)))
        return found.unflatten(0, given.shape[:-1])

    def _widen_rows(self, module: torch.nn.Module, args: object, found: Tensor) -> Tensor:
        return found.to(self.dtype)

    def _widen(self, module: torch.nn.Module, args: object) -> None:
        self._stored.setdefault(id(module), []).append([(p, p.data) for p in module.parameters(recurse=False)])
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(self.dtype)

    def _restore(self, module: torch.nn.Module, *_: Any) -> None:
        for parameter, stored in self._stored[id(module)].pop():
            parameter.data = stored


def native_engine(model: ModelConfig, weights: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, Computing]:
    """The native model with its weights rounded to the type of the folder that it is compared with."""
    network = load_for_inference(blueprint_of(model, dtype), weights)
    return network, Computing(network, torch.float32)


@torch.no_grad()
def native_logits(network: torch.nn.Module, model: ModelConfig, tokens: Tensor) -> Tensor:
    """[b, s] -> [b, s, v] on the CPU, padding rows cut off."""
    tokens = tokens.to(get_platform().device)
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    found: Tensor = network(tokens, places, None)[..., : model.vocab_size]
    return found.float().cpu()


def peer_class(folder: Path, ours: bool) -> tuple[Any, dict[str, bool]]:
    """The class that loads a folder, and the arguments that it needs; see ``peer_engine``."""
    from transformers import AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if fields.get("model_type") == "keural" and not ours:
        return get_class_from_dynamic_module("modeling_keural.KeuralForCausalLM", str(TEMPLATES)), {}
    return AutoModelForCausalLM, {"trust_remote_code": ours}


def peer_config(folder: Path) -> Any:
    """transformers' configuration of a folder that this program wrote; its class may refuse what is in it."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=True)


@dataclass(frozen=True)
class Peer:
    """transformers' model of a folder.

    Attributes:
        network: the model.
        computing: the type that it computes in.
        wrong: keys that it misses, does not expect or finds in another shape.
    """

    network: Any
    computing: Computing
    wrong: dict[str, list[str]]


def peer_engine(folder: Path, ours: bool) -> Peer:
    """transformers' model of a folder.

    Args:
        folder: config.json and safetensors.
        ours: whether the folder was written by this program, so that code in it may run. Code of others never runs: a
            class that transformers does not have is then taken from this package.
    """
    kind, more = peer_class(folder, ours)
    network, found = kind.from_pretrained(
        folder,
        dtype="auto",
        output_loading_info=True,
        local_files_only=True,
        attn_implementation="sdpa",
        experts_implementation="eager",  # the others know no fp64
        **more,
    )
    wrong = {name: sorted(map(str, found[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    network = network.to(get_platform().device).eval()
    return Peer(network, Computing(network, torch.float32), {name: keys for name, keys in wrong.items() if keys})


@torch.no_grad()
def peer_logits(network: Any, tokens: Tensor) -> Tensor:
    """[b, s] -> [b, s, v] on the CPU."""
    logits: Tensor = network(input_ids=tokens.to(network.device), use_cache=False).logits
    return logits.float().cpu()


@torch.no_grad()
def peer_greedy(network: Any, prompt: Tensor, new: int) -> Tensor:
    """The most probable continuation of [b, s] by transformers' own generation with its cache: [b, s + new]."""
    from transformers import GenerationConfig

    network.generation_config = GenerationConfig(max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0)
    given = prompt.to(network.device)
    tokens: Tensor = network.generate(given, attention_mask=torch.ones_like(given))
    return tokens.cpu()
