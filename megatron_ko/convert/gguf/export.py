"""A Hugging Face folder to GGUF files and a Modelfile, each proven in llama.cpp before it gets its name."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from megatron_ko.artifacts import lineage
from megatron_ko.artifacts.native import find_pretrained
from megatron_ko.config import ModelConfig
from megatron_ko.convert.families import rules_of
from megatron_ko.convert.gates import Gate, Proof, require_gates
from megatron_ko.convert.gguf.gates import compare_generation, compare_logits, compare_tensors, compare_values
from megatron_ko.convert.gguf.llama_cpp import QUANTISED, LlamaModel, quantise, require_packages
from megatron_ko.convert.gguf.ollama import ModelfileSummary, check_modelfile_text, modelfile
from megatron_ko.convert.gguf.reference import Reference, compute_reference
from megatron_ko.convert.gguf.tokens import tokenizer_gates
from megatron_ko.convert.gguf.values import differing_constants, differing_tokens, differing_weights
from megatron_ko.convert.gguf.vocabulary import GgufVocabulary, read_vocabulary
from megatron_ko.convert.gguf.write import (
    FLOAT_TYPES,
    bits_per_weight,
    check_expressible,
    file_types,
    plan_tensors,
    write_gguf,
)
from megatron_ko.convert.hf_config import from_hf_config
from megatron_ko.convert.hf_export import export_hf
from megatron_ko.convert.hf_files import read_json
from megatron_ko.convert.mapping import check_complete, other_shapes
from megatron_ko.convert.safetensors_folder import SafetensorsFolder
from megatron_ko.convert.staging import existing_proof, staged_folder, write_folder_lineage
from megatron_ko.convert.texts import LENGTHS
from megatron_ko.convert.tokenizer_class import load_oracle
from megatron_ko.errors import ConvertError

# The types of tensors that the quantiser wants in a file of this kind; any other is a fallback.
_WANTED = {"q8_0": {"Q8_0"}, "q5_k_m": {"Q5_K", "Q6_K"}, "q4_k_m": {"Q4_K", "Q5_K", "Q6_K"}}
MADE_BY = "convert gguf"
KINDS = (*FLOAT_TYPES, *QUANTISED)


@dataclass(frozen=True)
class GgufFile:
    """One file.

    Attributes:
        kind: of the file.
        name: of the file.
        size: bytes.
        bits: of a weight, on average.
        fallbacks: type and number of the tensors whose rows the type could not take: K types need a multiple of 256,
            q8_0 one of 32.
    """

    kind: str
    name: str
    size: int
    bits: float
    fallbacks: dict[str, int]


@dataclass(frozen=True)
class GgufExport:
    """What was written, how it was proven, what its Modelfile says, and the gates of the types that failed."""

    files: list[GgufFile]
    proof: Proof
    ollama: ModelfileSummary
    refused: tuple[Gate, ...] = ()

    def to_json(self) -> dict[str, object]:
        """For --json."""
        refused = [asdict(gate) for gate in self.refused]
        files = [asdict(one) for one in self.files]
        return {"files": files, "refused": refused, "ollama": asdict(self.ollama), **self.proof.to_json()}


def export_gguf(
    source: Path, output: Path, kinds: Sequence[str], text: str | None = None, accept_ties: bool = False
) -> GgufExport:
    """Write OUTPUT: a GGUF file of every kind whose gates passed, Modelfile, lineage.json; nothing where none did.

    There is no Modelfile when Ollama's template cannot say what the folder's chat template writes.

    Args:
        source: a Hugging Face folder; or a run or native model, which goes through ``export_hf``.
        output: must not exist, or be what this conversion made before.
        kinds: of ``KINDS``.
        text: held-out text that quantised files are judged on; None: a few passages of ours.
        accept_ties: Unigram only: other pieces of exactly the same probability do not count as a difference.

    Raises:
        ConvertError: a package is missing, llama.cpp cannot compute the network or encode the text, or a gate failed.
    """
    if not kinds or (unknown := [kind for kind in kinds if kind not in KINDS]):
        raise ConvertError("unknown type of file", got=", ".join(kinds and unknown), expected=f"of {', '.join(KINDS)}")
    check_modelfile_text(output.name, "the name of the file")
    require_packages()
    kinds = [kind for kind in KINDS if kind in kinds]
    native = None if (source / "config.json").is_file() else find_pretrained(source)
    parent = (
        native.ancestor()
        if native
        else lineage.ancestor(source, _hash_of_weights(source), beside=lineage.hash_beside(source))
    )
    options = {
        "types": ", ".join(kinds),
        "text": text if text is None else hashlib.sha256(text.encode()).hexdigest(),
        "accept ties": accept_ties,
    }
    before = _existing(output, parent, options)
    there = {one.kind for one in before.files} if before else set()
    missing = [kind for kind in kinds if kind not in there]
    if before is not None and not missing:
        return replace(before, files=[one for one in before.files if one.kind in kinds])
    with (
        staged_folder(output, replacing=before is not None) as folder,
        TemporaryDirectory(dir=folder) as beside,
    ):
        hugging_face = source
        if native is not None:
            hugging_face = Path(beside) / "hf"
            export_hf(native, hugging_face)
        model, vocabulary = _read_model(hugging_face)
        chat = modelfile(hugging_face, vocabulary, model.max_position_embeddings)
        written, gates = _write_all(folder, hugging_face, model, vocabulary, missing, output.name)
        gates += _prove(folder, hugging_face, model, vocabulary, written, text, accept_ties)
        written, gates, refused = _keep_proven(folder, written, gates)
        if before is not None:
            for one in before.files:
                _link(output / one.name, folder / one.name)
            written = sorted([*before.files, *written], key=lambda one: KINDS.index(one.kind))
            gates = [*{gate.name: gate for gate in (*before.proof.gates, *gates)}.values()]
        options["types"] = ", ".join(one.kind for one in written)
        if chat.text is not None:
            smallest = min(written, key=lambda one: one.size)
            (folder / "Modelfile").write_text(f"FROM ./{smallest.name}\n{chat.text}", encoding="utf-8")
        proof = Proof(None, tuple(gates))
        record = write_folder_lineage(folder, MADE_BY, model, [parent], proof, hugging_face, options)
        lineage.write(folder, {**record, "files": [asdict(one) for one in written], "ollama": asdict(chat.summary())})
    return GgufExport([one for one in written if one.kind in kinds], proof, chat.summary(), tuple(refused))


def _existing(output: Path, parent: lineage.Record, options: Mapping[str, object]) -> GgufExport | None:
    """What an earlier export of the same weights with the same options left, of whatever types.

    Raises:
        ConvertError: the folder is something else, or was changed.
    """
    record = lineage.read(output) if output.is_dir() else None
    types = (record or {}).get("options", {}).get("types", options["types"])  # more types may come, or fewer be wanted
    proof = existing_proof(output, MADE_BY, [parent], {**options, "types": types})
    if proof is None or record is None:
        return None
    told = ModelfileSummary(**record.get("ollama", {}))
    if told.modelfile and not (output / "Modelfile").is_file():
        raise ConvertError("the output exists without its Modelfile", got=output, remedy="move it away")
    files = [_written(output / f"{output.name}-{kind}.gguf", kind) for kind in types.split(", ")]
    return GgufExport(files, proof, told)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _keep_proven(
    folder: Path, written: Sequence[GgufFile], gates: Sequence[Gate]
) -> tuple[list[GgufFile], list[Gate], list[Gate]]:
    """Delete the files of which a gate failed, if others are left.

    Returns:
        the files that stay, their gates and those of all files, and the gates of what was deleted.

    Raises:
        ConvertError: no file is left, or a gate of all files failed.
    """
    kinds = [one.kind for one in written]
    failed = _failed_kinds(gates, kinds)
    if len(failed) == len(kinds):
        require_gates(gates)
    kept = [gate for gate in gates if gate.name.partition(":")[0] not in failed]
    require_gates(kept)
    for one in written:
        if one.kind in failed:
            (folder / one.name).unlink()
    return [one for one in written if one.kind not in failed], kept, [gate for gate in gates if gate not in kept]


def _failed_kinds(gates: Sequence[Gate], kinds: Sequence[str]) -> set[str]:
    """Types of which a gate failed; the others are worth keeping."""
    return {kind for gate in gates if not (gate.ok and gate.tried) and (kind := gate.name.partition(":")[0]) in kinds}


def _hash_of_weights(source: Path) -> str:
    """Hash of the weights of a folder, which must be those that its lineage names.

    Raises:
        ConvertError: the folder is stale: its weights were exchanged after it was made, or there are none.
    """
    found, record = lineage.hash_of_folder(source), lineage.read(source)
    if found is None:
        raise ConvertError("there are no safetensors in the folder", got=source)
    if record is not None and record.get("weights", found) != found:
        raise ConvertError(
            "the folder is stale: its weights are not those that its lineage names",
            got=f"{source}: weights {found}",
            expected=f"weights {record['weights']}, made by {record.get('made_by')}",
            remedy="export the model again",
        )
    return found


def _read_model(folder: Path) -> tuple[ModelConfig, GgufVocabulary]:
    """The network and the tokenizer of a folder, which must be whole and fit each other."""
    path = folder / "config.json"
    model = from_hf_config(read_json(path), str(path))
    check_expressible(model)
    rules = rules_of(model)
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
    folder: Path, source: Path, model: ModelConfig, vocabulary: GgufVocabulary, kinds: Sequence[str], name: str
) -> tuple[list[GgufFile], list[Gate]]:
    """Float files from the folder, the others from a float file that holds the folder's numbers exactly.

    Returns:
        the files, and the gate of that float file where it does not stay; the others are proven later.
    """
    for kind in FLOAT_TYPES:
        if kind in kinds:
            write_gguf(folder / f"{name}-{kind}.gguf", source, model, vocabulary, kind, name)
    gates = []
    quantised = [kind for kind in QUANTISED if kind in kinds]
    if quantised:
        exact = _stored(source)
        base = folder / f"{name}-{exact}.gguf"
        if exact not in kinds:
            write_gguf(base, source, model, vocabulary, exact, name)
            with SafetensorsFolder(source) as tensors:
                number = len(tensors.shapes)
            gates.append(compare_values("before quantising", number, differing_weights(base, source)))
        for kind in quantised:
            quantise(base, folder / f"{name}-{kind}.gguf", kind)
        if exact not in kinds:
            base.unlink()
    return [_written(folder / f"{name}-{kind}.gguf", kind) for kind in KINDS if kind in kinds], gates


def _stored(source: Path) -> str:
    with SafetensorsFolder(source) as tensors:
        dtype = tensors.read("model.norm.weight").dtype
    return next((kind for kind, known in FLOAT_TYPES.items() if known == dtype), "f32")


def _written(path: Path, kind: str) -> GgufFile:
    fallbacks: dict[str, int] = {}
    for found in file_types(path).values():
        if kind in _WANTED and found not in _WANTED[kind] | {"F32"}:
            fallbacks[found] = fallbacks.get(found, 0) + 1
    return GgufFile(kind, path.name, path.stat().st_size, bits_per_weight(path), fallbacks)


def _prove(
    folder: Path,
    source: Path,
    model: ModelConfig,
    vocabulary: GgufVocabulary,
    written: Sequence[GgufFile],
    text: str | None,
    accept_ties: bool,
) -> list[Gate]:
    """Every gate of every file. transformers' model is freed before llama.cpp loads one."""
    rows = len(vocabulary.tokens)
    gates = []
    with LlamaModel(folder / written[0].name) as only_words:
        samples = text.splitlines() if text is not None else []
        gates += tokenizer_gates(source, vocabulary, only_words, samples, accept_ties)
    with SafetensorsFolder(source) as tensors:
        plan = plan_tensors(tensors.shapes, model, rows)
    expected = {stored.name: stored.shape for stored in plan}
    if model.rope.scaling is not None and model.rope.scaling.type == "llama3":
        expected["rope_freqs.weight"] = (model.kv_channels // 2,)
    reference = compute_reference(source, model.max_position_embeddings, rows, text)
    oracle = load_oracle(source)
    for one in written:
        path, context = folder / one.name, model.max_position_embeddings
        gates += _prove_file(one.kind, path, source, oracle, expected, reference, context)
    return gates


def _prove_file(
    kind: str,
    path: Path,
    source: Path,
    oracle: Any,
    expected: dict[str, tuple[int, ...]],
    reference: Reference,
    context: int,
) -> list[Gate]:
    differing = [*differing_constants(path, source), *differing_tokens(path, source, oracle)]
    if kind in FLOAT_TYPES:
        differing += differing_weights(path, source)
    with LlamaModel(path, context=min(context, max(LENGTHS) + 255)) as model:
        return [
            compare_tensors(kind, path, expected, model),
            compare_values(kind, len(expected), differing),
            *compare_logits(kind, model, reference),
            *([compare_generation(kind, model, reference)] if kind == "f32" else []),
        ]
