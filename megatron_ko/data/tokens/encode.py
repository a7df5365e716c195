"""What a worker does with a chunk: parse, encode, and write a part. Imports neither torch nor transformers."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import orjson
import xxhash

from megatron_ko.data.jobs.chunks import Chunk
from megatron_ko.data.text.documents import parse_block
from megatron_ko.data.text.records import Block, Rejected
from megatron_ko.data.tokenizer.tokenizer import Encoded, Tokenizer, load_tokenizer
from megatron_ko.data.tokenizer.unencodable import Unencodable
from megatron_ko.data.tokens.identity import UnencodablePolicy
from megatron_ko.data.tokens.indexed import token_dtype
from megatron_ko.data.tokens.parts import EncodeStatistics, PartCounts

_COPY_BYTES = 1 << 22
# How many documents of a block, and then of a part, are samples: decoded text is compared with their hashes.
_SAMPLES = 64
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


@dataclass(frozen=True)
class ParsedKeys:
    """The records of a block in which every key holds a text.

    Attributes:
        texts: one list a key, of equal lengths.
        positions: of these records.
        rejected: the other records, in order.
        before: number of documents of the block before each rejected record.
    """

    texts: list[list[str]]
    positions: list[int]
    rejected: list[Rejected]
    before: np.ndarray


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
    return _parsed_keys(texts, positions, rejected)


def _parsed_keys(texts: list[list[str]], positions: list[int], rejected: list[Rejected]) -> ParsedKeys:
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
        with _PartWriter(part, self._options, token_dtype(self._tokenizer.vocab_size)) as writer:
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
            return {**writer.finish(), "unencodable": dict(sorted(changed.items())), "read": chunk.read}


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
        return _parsed_keys(texts, [parsed.positions[row] for row in keep], rejected)
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


class _PartWriter:
    """Writes the ids of the first key as they come, and the rest at the end; ids of other keys wait in spool files."""

    def __init__(self, part: Path, options: EncodeOptions, dtype: np.dtype) -> None:
        self._options, self._dtype = options, dtype
        self._stack = ExitStack()
        self._streams: list[IO[bytes]] = [self._stack.enter_context(part.open("wb"))]
        for _ in options.keys[1:]:
            spool = tempfile.TemporaryFile(dir=part.parent)  # noqa: SIM115 (closed by the stack)
            self._streams.append(self._stack.enter_context(spool))
        self._tokens, self._bytes = [0] * len(options.keys), [0] * len(options.keys)
        self._lengths: list[list[np.ndarray]] = [[] for _ in options.keys]
        self._text_bytes: list[list[np.ndarray]] = [[] for _ in options.keys]
        self._before: list[np.ndarray] = []
        self._rejected: list[Rejected] = []
        self._samples: list[tuple[int, list[str]]] = []
        self._runs: list[tuple[str, int]] = []
        self._documents = 0

    def __enter__(self) -> "_PartWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, source: str, parsed: ParsedKeys, encoded: Sequence[Encoded]) -> None:
        """The next block."""
        for key, (texts, tokens) in enumerate(zip(parsed.texts, encoded, strict=True)):
            self._streams[key].write(tokens.ids.astype(self._dtype).view(np.uint8).data)
            self._tokens[key] += tokens.ids.size
            self._lengths[key].append(tokens.lengths.astype("<i4"))
            if self._options.text_bytes:
                sizes = np.fromiter((len(text.encode("utf-8")) for text in texts), dtype="<i4", count=len(texts))
                self._text_bytes[key].append(sizes)
                self._bytes[key] += int(sizes.sum(dtype=np.int64))
            else:
                self._bytes[key] += len("".join(texts).encode("utf-8"))
        number = len(parsed.texts[0])
        for index in range(0, number, max(1, -(-number // _SAMPLES))):
            self._samples.append((self._documents + index, [text_hash(texts[index]) for texts in parsed.texts]))
        self._before.append(parsed.before + np.int32(self._documents))
        self._rejected += parsed.rejected
        self._documents += number
        if self._runs and self._runs[-1][0] == source:
            self._runs[-1] = (source, self._runs[-1][1] + number)
        else:
            self._runs.append((source, number))

    def finish(self) -> PartCounts:
        """Write the sections that ``parts.PartView`` reads after the first ids, and return what it needs to know."""
        stream = self._streams[0]
        for key, ids in enumerate(self._streams):
            if key:
                ids.seek(0)
                shutil.copyfileobj(ids, stream, _COPY_BYTES)
            for array in (*self._lengths[key], *self._text_bytes[key]):
                stream.write(array.view(np.uint8).data)
        for array in self._before:
            stream.write(array.astype("<i4").view(np.uint8).data)
        for record in self._rejected:
            stream.write(orjson.dumps(asdict(record), option=orjson.OPT_APPEND_NEWLINE))
        # What follows a colon is detail: "malformed JSON: ..." counts as one reason.
        reasons = Counter(record.reason.split(":")[0] for record in self._rejected)
        first = self._rejected[0] if self._rejected else None
        return {
            "documents": self._documents,
            "rejected": len(self._rejected),
            "tokens": self._tokens,
            "text_bytes": self._bytes,
            "reasons": dict(sorted(reasons.items())),
            "first_rejected": f"{first.reason} at {first.source}:{first.position}" if first else None,
            "runs": self._runs,
            "samples": self._samples[:: max(1, -(-len(self._samples) // _SAMPLES))],
        }


def text_hash(text: str) -> str:
    """xxh3_128 of a text as UTF-8."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8"))
