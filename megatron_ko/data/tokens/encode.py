"""What a worker does with a chunk: parse, encode, and write a part. Imports neither torch nor transformers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ko.data.jobs.chunks import Chunk
from megatron_ko.data.text.documents import parse_block
from megatron_ko.data.text.records import Block, Rejected
from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.data.tokenizer.unencodable import Unencodable
from megatron_ko.data.tokens.identity import UnencodablePolicy
from megatron_ko.data.tokens.indexed import token_dtype
from megatron_ko.data.tokens.part_writer import PartWriter
from megatron_ko.data.tokens.parts import EncodeStatistics, Layout, ParsedKeys

_EXCERPT, _NAMED = 200, 8


@dataclass(frozen=True)
class EncodeOptions:
    """How a worker turns records into tokens.

    Attributes:
        tokenizer: folder.
        keys: text fields; each gives an output of its own.
        append_eod: end every document with the tokenizer's end-of-document token.
        text_bytes: keep the UTF-8 bytes of every document, not only of the part.
        unencodable: what becomes of a document with characters that the vocabulary has no tokens for.
        bos: id that every document begins with, if any.
    """

    tokenizer: Path
    keys: tuple[str, ...]
    append_eod: bool
    text_bytes: bool = False
    unencodable: UnencodablePolicy = "refuse"
    bos: int | None = None


def parse_keys(block: Block, keys: Sequence[str]) -> ParsedKeys:
    """Parse a block for one key or several; a record that lacks one of them is rejected for all."""
    parsed = parse_block(block, keys[0])
    texts, positions, rejected = [parsed.texts], parsed.positions, parsed.rejected
    for key in keys[1:]:
        other = parse_block(block, key)
        both = set(positions) & set(other.positions)
        texts = [_chosen(column, positions, both) for column in texts]
        texts.append(_chosen(other.texts, other.positions, both))
        known = {record.position for record in rejected}
        rejected += [record for record in other.rejected if record.position not in known]
        positions = [position for position in positions if position in both]
    return parsed_keys(texts, positions, rejected)


def parsed_keys(texts: list[list[str]], positions: list[int], rejected: list[Rejected]) -> ParsedKeys:
    """Documents and rejected records of a block, with the place of each rejected one among the documents."""
    rejected.sort(key=lambda record: record.position)
    before = np.searchsorted(positions, [record.position for record in rejected]) if rejected else np.zeros(0)
    return ParsedKeys(texts, positions, rejected, before.astype(np.int32))


def _chosen(texts: list[str], positions: list[int], wanted: set[int]) -> list[str]:
    return [text for text, position in zip(texts, positions, strict=True) if position in wanted]


class EncodeChunk:
    """Writes the part of a chunk, in the format of ``parts``. Each process loads the tokenizer once."""

    def __init__(self, options: EncodeOptions) -> None:
        self._options = options
        self._tokenizer: Tokenizer | None = None
        self._unencodable: Unencodable | None = None

    def __call__(self, chunk: Chunk, part: Path) -> EncodeStatistics:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._options.tokenizer)
            self._unencodable = Unencodable(self._tokenizer)
        assert self._unencodable is not None
        changed = Counter[str]()
        layout = Layout(
            len(self._options.keys), token_dtype(self._tokenizer.vocab_size), text_bytes=self._options.text_bytes
        )
        with PartWriter(part, layout) as writer:
            for block in chunk.blocks:
                parsed = screened(
                    parse_keys(block, self._options.keys),
                    block.source,
                    self._unencodable,
                    self._options.unencodable,
                    changed,
                )
                encoded = [
                    self._tokenizer.encode_documents(texts, append_eod=self._options.append_eod, bos=self._options.bos)
                    for texts in parsed.texts
                ]
                writer.add(block.source, parsed, encoded)
            return {
                **writer.finish(),
                "unencodable": dict(sorted(changed.items())),
                "records": {},
                "read": chunk.read,
            }


def screened(
    parsed: ParsedKeys, source: str, unencodable: Unencodable, policy: UnencodablePolicy, changed: Counter[str]
) -> ParsedKeys:
    """Apply the policy to documents with characters that have no tokens.

    Args:
        parsed: of a block.
        source: of the block.
        unencodable: knows the vocabulary.
        policy: refuse, replace or keep.
        changed: counts the documents that are replaced or kept, by "U+0004" and in "documents".
    """
    bad = {
        row: characters
        for row, texts in enumerate(zip(*parsed.texts, strict=True))
        if (characters := sorted({c for text in texts for c in unencodable.characters(text)}))
    }
    if not bad:
        return parsed
    columns = [list(column) for column in parsed.texts]
    if policy == "refuse":
        rejected = [
            *parsed.rejected,
            *(
                Rejected(source, parsed.positions[row], f"no token: {_named(characters)}", columns[0][row][:_EXCERPT])
                for row, characters in bad.items()
            ),
        ]
        keep = [row for row in range(len(parsed.positions)) if row not in bad]
        texts = [[column[row] for row in keep] for column in columns]
        return parsed_keys(texts, [parsed.positions[row] for row in keep], rejected)
    for row, characters in bad.items():
        changed.update(["documents", *map(_code, characters)])
        for column in columns if policy == "replace" else []:
            column[row] = unencodable.replaced(column[row], characters)
    return ParsedKeys(columns, parsed.positions, parsed.rejected, parsed.before)


def _named(characters: Sequence[str]) -> str:
    shown = " ".join(map(_code, characters[:_NAMED]))
    return shown if len(characters) <= _NAMED else f"{shown} and {len(characters) - _NAMED} more"


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"
