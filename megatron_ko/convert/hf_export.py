"""A native model to a Hugging Face folder that transformers loads, tensor by tensor."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron_ko.artifacts.native import Pretrained
from megatron_ko.config import ModelConfig
from megatron_ko.convert.card import model_card
from megatron_ko.convert.engines import peer_config
from megatron_ko.convert.families import family_of, rules_of
from megatron_ko.convert.gates import Depth, Proof, running
from megatron_ko.convert.hf_files import write_config
from megatron_ko.convert.mapping import VOCABULARY, MappedBlock, blocks, check_complete, native_shapes, other_shapes
from megatron_ko.convert.native import NativeReader
from megatron_ko.convert.safetensors_folder import bytes_of, write_shards
from megatron_ko.convert.staging import existing_proof, require_tokenizer, staged_folder, told, write_folder_lineage
from megatron_ko.convert.verify import ModelPair, prove
from megatron_ko.errors import ConvertError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MADE_BY = "convert hf-export"


def export_hf(
    source: Pretrained, output: Path, dtype: str | None = None, shard_bytes: int = 2 << 30, depth: Depth = "full"
) -> Proof:
    """Write OUTPUT: safetensors, configuration, tokenizer, README.md, lineage.json; nothing unless proven.

    Args:
        source: the native model.
        output: must not exist, or be what this conversion made before.
        dtype: "float32", "bfloat16", "float16"; None: as the weights are stored.
        shard_bytes: largest weight file, and about what is held in memory.
        depth: of the proof.

    Raises:
        ConvertError: the checkpoint does not hold what its configuration says, the class in transformers cannot compute
            the network, or a gate failed.
    """
    require_tokenizer(source)
    model = source.model
    reader = NativeReader(source.weights)
    numbers: Counter[torch.dtype] = Counter()
    for key, shape in reader.shapes.items():
        numbers[reader.dtype(key)] += torch.Size(shape).numel()
    main = type_of(dtype) if dtype else numbers.most_common(1)[0][0]
    parents, options = [source.ancestor()], {"dtype": str(main).removeprefix("torch."), **told(depth)}
    if (before := existing_proof(output, MADE_BY, parents, options)) is not None:
        return before
    family_of(model).to_hf(model)  # what its class cannot compute is refused by name
    rules = rules_of(model)
    check_complete(native_shapes(rules, model), _stored_shapes(reader, model), str(source.weights))
    shapes = other_shapes(rules, model)
    ordered = sorted(blocks(rules, model), key=_layer)
    types = {block.native: main if dtype else reader.dtype(block.native) for block in ordered}
    sizes = {name: bytes_of(shapes[name], types[block.native]) for block in ordered for name in block.others}
    with staged_folder(output) as folder:
        write_config(folder, source, str(options["dtype"]))
        with running("config.json in transformers"):  # what its class refuses, it refuses before hours are spent
            peer_config(folder)
        write_shards(folder, _tensors(ordered, reader, types), sizes, shard_bytes)
        proof = prove(ModelPair(model, source.weights, source.tokenizer, folder, written_here=True), depth)
        record = write_folder_lineage(folder, MADE_BY, model, parents, proof, source.tokenizer, options)
        (folder / "README.md").write_text(model_card(output.name, source, record), encoding="utf-8")
    return proof


def type_of(name: str) -> torch.dtype:
    """The PyTorch type for a name that transformers uses.

    Raises:
        ConvertError: there is none.
    """
    if name not in DTYPES:
        raise ConvertError("unknown type of tensors", got=name, expected=f"one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _stored_shapes(reader: NativeReader, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Global shapes, those of the vocabulary as one rank would pad it."""
    stored = dict(reader.shapes)
    for name in VOCABULARY:  # padded for the layout that wrote it
        if name in stored and stored[name][0] >= model.vocab_size:
            stored[name] = (model.padded_vocab_size(1), *stored[name][1:])
    return stored


def _layer(block: MappedBlock) -> int:
    """Order of files: embedding, layers, what comes after them."""
    if block.index:
        return block.index[0]
    return -1 if block.native.startswith("embedding.") else 1 << 30


def _tensors(
    ordered: list[MappedBlock], reader: NativeReader, types: Mapping[str, torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    for block in ordered:
        parts = block.mapping.split(reader.read(block.native, block.index))
        for name, part in zip(block.others, parts, strict=True):
            yield name, part.to(types[block.native])
