"""The adapters of a run to a folder that peft loads onto the same model in transformers.

Where queries, keys and values, or gate and up, are one matrix of ours, peft has an adapter for each: all with our A.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_ko.artifacts.native import AdapterRun
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.gates import Gate, Proof, require_gates
from megatron_ko.convert.mapping import MappedBlock, blocks
from megatron_ko.convert.native import NativeReader
from megatron_ko.convert.staging import existing_proof, require_tokenizer, staged_folder, write_folder_lineage
from megatron_ko.errors import ConvertError
from megatron_ko.models.adapter_weights import EXPERT_PLACES, LAYERS, MARK, PLACES, merged_weight

MADE_BY = "convert peft-export"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LIMIT = 1e-6


def export_peft(source: AdapterRun, output: Path, base: str | None = None) -> Proof:
    """Write OUTPUT: adapter_config.json, adapter_model.safetensors, tokenizer, lineage.json; nothing unless proven.

    Args:
        source: the adapters and their model.
        output: must not exist, or be what this conversion made before.
        base: name or folder of the model in transformers, for peft to find it; None: its loader has to be told.

    Raises:
        ConvertError: read back, the folder does not give the weights that the run has.
    """
    require_tokenizer(source.run)
    if source.run.model.moe is not None and any(target in EXPERT_PLACES for target in source.adapter.targets):
        raise ConvertError(
            "adapters of experts cannot go to peft: transformers keeps the experts of a layer in one tensor",
            got=", ".join(source.adapter.targets),
            expected="adapters of attention",
            remedy="megatron-ko convert merge-adapter, then hf-export",
        )
    parents, options = [source.base.ancestor(), source.run.ancestor()], {"base": base}
    if (before := existing_proof(output, MADE_BY, parents, options)) is not None:
        return before
    adapted = list(_adapted(source))
    with staged_folder(output) as folder:
        if source.run.tokenizer is not None:
            shutil.copytree(source.run.tokenizer, folder, dirs_exist_ok=True)
        save_file({name: value for each in adapted for name, value in each.tensors()}, folder / WEIGHTS)
        fields = _fields(source, sorted({name.rpartition(".")[2] for each in adapted for name in each.modules}), base)
        (folder / CONFIG).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        proof = _prove(folder / WEIGHTS, adapted)
        write_folder_lineage(folder, MADE_BY, source.run.model, parents, proof, source.run.tokenizer, options)
    return proof


def _fields(source: AdapterRun, modules: list[str], base: str | None) -> dict[str, object]:
    adapter = source.adapter
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": modules,
        "use_dora": adapter.kind == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


@dataclass(frozen=True)
class _Adapted:
    """One weight of ours with its adapter.

    Attributes:
        block: which one, and what it is in transformers.
        base: the model's weights.
        adapters: the run's.
        scale: s.
    """

    block: MappedBlock
    base: NativeReader
    adapters: NativeReader
    scale: float

    @property
    def modules(self) -> list[str]:
        """Names of the layers in transformers."""
        return [name.removesuffix(".weight") for name in self.block.others]

    def read(self, name: str) -> Tensor | None:
        key = self.block.native.removesuffix(".weight") + MARK + name
        return self.adapters.read(key, self.block.index) if key in self.adapters.shapes else None

    @cached_property
    def _weight(self) -> Tensor:
        return self.base.read(self.block.native, self.block.index)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """peft's names and tensors."""
        a, b, change = (self.read(name) for name in ("a", "b", "magnitude_change"))
        assert a is not None and b is not None
        for module, rows in zip(self.modules, self.block.mapping.split(b), strict=True):
            yield f"base_model.model.{module}.lora_A.weight", a.clone()
            yield f"base_model.model.{module}.lora_B.weight", rows.contiguous()
        if change is not None:
            norms = (self._weight.float().square().sum(1).sqrt() + change.float()).unsqueeze(1)
            for module, part in zip(self.modules, self.block.mapping.split(norms), strict=True):
                yield f"base_model.model.{module}.lora_magnitude_vector", part.squeeze(1).contiguous()

    def wanted(self) -> list[Tensor]:
        """The weights of transformers' layers with their adapters, in fp32."""
        a, b = self.read("a"), self.read("b")
        assert a is not None and b is not None
        merged = merged_weight(self._weight.float(), a, b, self.scale, self.read("magnitude_change"))
        return list(self.block.mapping.split(merged))

    def parts(self) -> list[Tensor]:
        """The same weights without them."""
        return list(self.block.mapping.split(self._weight.float()))


def _adapted(source: AdapterRun) -> Iterator[_Adapted]:
    base, adapters = NativeReader(source.base.weights), NativeReader(source.run.weights)
    places = {f"{LAYERS}{PLACES[target][0]}.weight" for target in source.adapter.targets}
    for block in blocks(rules_of(source.run.model), source.run.model):
        if block.native in places:
            yield _Adapted(block, base, adapters, source.adapter.scale)


def _prove(path: Path, adapted: Sequence[_Adapted]) -> Proof:
    """What peft computes of the written tensors is what the run computes: weight by weight, in fp32."""
    worst, tried = 0.0, 0
    with safe_open(path, framework="pt") as held:
        names = set(held.keys())
        for each in adapted:
            for module, weight, wanted in zip(each.modules, each.parts(), each.wanted(), strict=True):
                prefix = f"base_model.model.{module}.lora_"
                a, b = (held.get_tensor(f"{prefix}{name}.weight").float() for name in "AB")
                found = weight + each.scale * (b @ a)
                if f"{prefix}magnitude_vector" in names:
                    found *= (held.get_tensor(f"{prefix}magnitude_vector") / found.norm(dim=1)).unsqueeze(1)
                worst = max(worst, float((found - wanted).norm() / wanted.norm()))
                tried += 1
    gate = Gate("weights with adapters", tried, worst <= _LIMIT, f"{worst:.1e} apart, at most {_LIMIT:.0e}")
    require_gates([gate])
    return Proof(None, (gate,))
