"""A Hugging Face folder to GGUF files and a Modelfile, each proven in llama.cpp before it gets its name."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_ko.config import ModelConfig
from megatron_ko.convert.families import FAMILIES
from megatron_ko.convert.families.common import around
from megatron_ko.convert.gguf import (
    FLOAT_TYPES,
    bits_per_weight,
    check_expressible,
    file_types,
    plan_tensors,
    write_gguf,
)
from megatron_ko.convert.gguf_gates import (
    Gate,
    compare_generation,
    compare_logits,
    compare_tensors,
    compare_values,
    failed,
    table,
)
from megatron_ko.convert.gguf_reference import LENGTHS, Reference, compute_reference
from megatron_ko.convert.gguf_tokens import compare_tokenizers
from megatron_ko.convert.gguf_values import differing_constants, differing_weights
from megatron_ko.convert.gguf_vocabulary import Vocabulary, read_vocabulary
from megatron_ko.convert.hf_config import from_hf_config
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.llama_cpp import QUANTISED, LlamaModel, quantise, require
from megatron_ko.convert.mapping import check_complete, other_shapes
from megatron_ko.convert.ollama import modelfile
from megatron_ko.convert.safetensors_folder import SafetensorsFolder
from megatron_ko.convert.staging import staged_folder
from megatron_ko.errors import ConvertError
from megatron_ko.models import checkpoint_files as files
from megatron_ko.models.pretrained import LINEAGE, find_pretrained

# What a quantiser makes of a tensor of this kind; anything else in such a file is a fall-back.
_WANTED = {"q8_0": {"Q8_0"}, "q5_k_m": {"Q5_K", "Q6_K"}, "q4_k_m": {"Q4_K", "Q5_K", "Q6_K"}}
KINDS = (*FLOAT_TYPES, *QUANTISED)


@dataclass(frozen=True)
class Written:
    """One file.

    Attributes:
        kind: of the file.
        name: of the file.
        size: bytes.
        bits: of a weight, on average.
        fallbacks: type and number of the tensors that the type could not take, because 256 does not divide their rows.
    """

    kind: str
    name: str
    size: int
    bits: float
    fallbacks: dict[str, int]


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was proven."""

    files: list[Written]
    gates: list[Gate]

    def describe(self) -> dict[str, Any]:
        """For lineage.json and --json."""
        written = [{**vars(one)} for one in self.files]
        return {"files": written, "gates": [gate.describe() for gate in self.gates]}


def export_gguf(
    source: Path, output: Path, kinds: Sequence[str], text: str | None = None, accept_ties: bool = False
) -> Exported:
    """Write OUTPUT: a GGUF file a kind, Modelfile, lineage.json; nothing unless every gate passed.

    Args:
        source: a Hugging Face folder; or a run or native model, which goes through ``export_hf``.
        output: must not exist.
        kinds: of ``KINDS``.
        text: held-out text that quantised files are judged on; None: a few passages of ours.
        accept_ties: Unigram only: other pieces of exactly the same probability are no difference.

    Raises:
        ConvertError: a package is missing, llama.cpp cannot compute the network or encode the text, or a gate failed.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConvertError("unknown type of file", got=", ".join(unknown), expected=f"one of {', '.join(KINDS)}")
    require()
    with staged_folder(output) as folder:
        hugging_face = _hugging_face(source, folder / "hf")
        model, vocabulary = _understood(hugging_face)
        exported = _write_all(folder, hugging_face, model, vocabulary, kinds, output.name)
        gates = _prove(folder, hugging_face, model, vocabulary, exported, text, accept_ties)
        if wrong := failed(gates):
            raise ConvertError(
                f"llama.cpp does not make of the files what transformers makes of {source}",
                got=f"{len(wrong)} of {len(gates)} gates failed\n{table(wrong)}",
                expected="every gate passed; nothing was written",
                remedy=_remedy(wrong),
            )
        smallest = min(exported, key=lambda one: one.size)
        content = modelfile(smallest.name, hugging_face, vocabulary, model.max_position_embeddings)
        (folder / "Modelfile").write_text(content, encoding="utf-8")
        result = Exported(exported, gates)
        _write_lineage(folder, source, hugging_face, result)
        if hugging_face != source:
            shutil.rmtree(hugging_face)
    return result


def _remedy(wrong: Sequence[Gate]) -> str | None:
    """Where there is a choice: ties of a Unigram model are the only difference that one may want to live with."""
    if not all(gate.only_ties for gate in wrong):
        return None
    return (
        "llama.cpp takes the longest piece first, where SentencePiece takes the longest last; --accept-ties if that is "
        "good enough, or train the next model on byte-bpe"
    )


def _hugging_face(source: Path, temporary: Path) -> Path:
    if (source / "config.json").is_file():
        return source
    export_hf(find_pretrained(source), temporary)
    return temporary


def _understood(folder: Path) -> tuple[ModelConfig, Vocabulary]:
    """The network and the tokenizer of a folder, which must be whole and fit each other."""
    where = str(folder / "config.json")
    model = from_hf_config(json.loads(Path(where).read_text(encoding="utf-8")), where)
    check_expressible(model)
    rules = around(FAMILIES[model.family].layers, model)
    with SafetensorsFolder(folder) as tensors:
        check_complete(other_shapes(rules, model), tensors.shapes, str(folder))
    vocabulary = read_vocabulary(folder)
    if len(vocabulary.tokens) > model.vocab_size:
        raise ConvertError(
            "the tokenizer has ids that the model has no rows for",
            got=f"{len(vocabulary.tokens):,} ids, {model.vocab_size:,} rows",
            expected="a tokenizer of this model",
        )
    return model, vocabulary


def _write_all(
    folder: Path, source: Path, model: ModelConfig, vocabulary: Vocabulary, kinds: Sequence[str], name: str
) -> list[Written]:
    """Float files from the folder, the others from a float file that holds the folder's numbers exactly."""
    for kind in FLOAT_TYPES:
        if kind in kinds:
            write_gguf(folder / f"{name}-{kind}.gguf", source, model, vocabulary, kind, name)
    quantised = [kind for kind in QUANTISED if kind in kinds]
    if quantised:
        exact = _stored(source)
        base = folder / f"{name}-{exact}.gguf"
        if exact not in kinds:
            write_gguf(base, source, model, vocabulary, exact, name)
        for kind in quantised:
            quantise(base, folder / f"{name}-{kind}.gguf", kind)
        if exact not in kinds:
            base.unlink()
    return [_written(folder / f"{name}-{kind}.gguf", kind) for kind in KINDS if kind in kinds]


def _stored(source: Path) -> str:
    with SafetensorsFolder(source) as tensors:
        dtype = tensors.read("model.norm.weight").dtype
    return next((kind for kind, known in FLOAT_TYPES.items() if known == dtype), "f32")


def _written(path: Path, kind: str) -> Written:
    fallbacks: dict[str, int] = {}
    for found in file_types(path).values():
        if kind in _WANTED and found not in _WANTED[kind] | {"F32"}:
            fallbacks[found] = fallbacks.get(found, 0) + 1
    return Written(kind, path.name, path.stat().st_size, bits_per_weight(path), fallbacks)


def _prove(
    folder: Path,
    source: Path,
    model: ModelConfig,
    vocabulary: Vocabulary,
    written: Sequence[Written],
    text: str | None,
    accept_ties: bool,
) -> list[Gate]:
    """Every gate of every file. transformers' model is gone before llama.cpp loads one."""
    rows = len(vocabulary.tokens)
    gates = []
    with LlamaModel(folder / written[0].name) as only_words:
        samples = text.splitlines() if text is not None else []
        gates += compare_tokenizers(source, vocabulary, only_words, samples, accept_ties)
    with SafetensorsFolder(source) as tensors:
        plan = plan_tensors(tensors.shapes, model, rows)
    expected = {stored.name: stored.shape for stored in plan}
    if model.rope.scaling is not None and model.rope.scaling.type == "llama3":
        expected["rope_freqs.weight"] = (model.kv_channels // 2,)
    reference = compute_reference(source, model.max_position_embeddings, rows, text)
    for one in written:
        gates += _prove_file(one.kind, folder / one.name, source, expected, reference, model.max_position_embeddings)
    return gates


def _prove_file(
    kind: str, path: Path, source: Path, expected: dict[str, tuple[int, ...]], reference: Reference, context: int
) -> list[Gate]:
    differing = [*differing_constants(path, source)]
    if kind in FLOAT_TYPES:
        differing += differing_weights(path, source)
    with LlamaModel(path, context=min(context, max(LENGTHS) + 255)) as model:
        return [
            compare_tensors(kind, path, expected, model),
            compare_values(kind, differing),
            *compare_logits(kind, model, reference),
            *([compare_generation(kind, model, reference)] if kind == "f32" else []),
        ]


def _write_lineage(folder: Path, source: Path, hugging_face: Path, result: Exported) -> None:
    described = result.describe()
    for one in described["files"]:
        one["xxh3_128"] = files.hash_file(folder / one["name"])
    inherited = hugging_face / LINEAGE
    record = {
        "made_by": "convert gguf",
        "parent": {
            "path": str(source.resolve()),
            "files": {path.name: files.hash_file(path) for path in sorted(hugging_face.glob("*.safetensors"))},
            "lineage": orjson.loads(inherited.read_bytes()) if inherited.is_file() else None,
        },
        **described,
    }
    (folder / LINEAGE).write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
