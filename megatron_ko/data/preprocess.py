"""Text files to indexed tokens: one reader, N encoders, one writer; the output does not depend on N."""

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_ko import __version__
from megatron_ko.data.blocks import Block, check_inputs, content_hash, read_blocks
from megatron_ko.data.documents import Rejected
from megatron_ko.data.encode import EncodedBlock, EncodeOptions, encode_blocks
from megatron_ko.data.files import Staged, explained
from megatron_ko.data.indexed import IndexedWriter, bin_path, idx_path, token_dtype
from megatron_ko.data.manifest import Manifest, Source, manifest_path, rejected_path
from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.errors import DataError

# Called with the bytes of all inputs that have been read and encoded so far.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class PreprocessOptions:
    """What to encode into what.

    Attributes:
        inputs: .txt, .jsonl, .parquet, .gz, .zst files; documents keep their order.
        tokenizer: folder.
        output: prefix of the files that are written.
        workers: encoding processes; 1 encodes in this process.
        key: text field of jsonl and parquet.
        append_eod: end every document with the tokenizer's end-of-document token.
        text_unit: a document of a .txt file is a "line" or the whole "file".
    """

    inputs: tuple[Path, ...]
    tokenizer: Path
    output: Path
    workers: int = 1
    key: str = "text"
    append_eod: bool = True
    text_unit: str = "line"


def preprocess(options: PreprocessOptions, progress: Progress = lambda _: None) -> Manifest:
    """Write OUTPUT.bin, .idx, .manifest.json, and .rejected.jsonl if a record was rejected.

    Raises:
        DataError: bad input, an empty corpus, an existing output, a full disk, a dead worker. No file is left.
        TokenizerError: the tokenizer cannot be loaded.
    """
    check_inputs(options.inputs)
    tokenizer = load_tokenizer(options.tokenizer)
    prefix = options.output
    finals = [bin_path(prefix), idx_path(prefix), rejected_path(prefix), manifest_path(prefix)]
    with explained(prefix), Staged(finals) as staged:
        tally = _Tally()
        writer = IndexedWriter(staged.open(bin_path(prefix)), token_dtype(tokenizer.vocab_size), prefix.parent)
        rejected_stream = None
        with closing(_encoded(options)) as results:
            for encoded in results:
                writer.add(encoded.ids, encoded.lengths)
                tally.add(encoded)
                if encoded.rejected and rejected_stream is None:
                    rejected_stream = staged.open(rejected_path(prefix))
                for record in encoded.rejected:
                    assert rejected_stream is not None
                    rejected_stream.write(_rejected_line(record))
                progress(tally.read_bytes())
        if not writer.documents:
            raise _empty(options, tally)
        idx_sha256 = writer.write_index(staged.open(idx_path(prefix)))
        manifest = _manifest(options, tokenizer, tally, writer, idx_sha256)
        staged.open(manifest_path(prefix)).write(manifest.to_json().encode("utf-8"))
        staged.publish()
    return manifest


def _encoded(options: PreprocessOptions) -> Generator[EncodedBlock, None, None]:
    encode = EncodeOptions(tokenizer=options.tokenizer, key=options.key, append_eod=options.append_eod)
    return encode_blocks(_all_blocks(options), encode, options.workers)


def _all_blocks(options: PreprocessOptions) -> Iterator[Block]:
    for path in options.inputs:
        yield from read_blocks(path, key=options.key, text_unit=options.text_unit)


class _Tally:
    """Counts by source while results pass."""

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.text_bytes = 0
        self.max_token_id = -1
        self.first_rejected: Rejected | None = None
        self._read: dict[str, int] = {}

    def add(self, block: EncodedBlock) -> None:
        self.documents[block.source] += block.lengths.size
        self.rejected[block.source] += len(block.rejected)
        # "malformed JSON: what exactly" counts as one reason.
        self.reasons.update(record.reason.split(":")[0] for record in block.rejected)
        self.text_bytes += block.text_bytes
        if block.ids.size:
            self.max_token_id = max(self.max_token_id, int(block.ids.max()))
        if block.rejected and self.first_rejected is None:
            self.first_rejected = block.rejected[0]
        self._read[block.source] = block.read

    def read_bytes(self) -> int:
        return sum(self._read.values())


def _manifest(
    options: PreprocessOptions, tokenizer: Tokenizer, tally: _Tally, writer: IndexedWriter, idx_sha256: str
) -> Manifest:
    dtype = token_dtype(tokenizer.vocab_size)
    return Manifest(
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokenizer_kind=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        documents=writer.documents,
        tokens=writer.tokens,
        bytes=tally.text_bytes,
        rejected=tally.rejected.total(),
        rejected_reasons=dict(sorted(tally.reasons.items())),
        dtype=dtype.name,
        max_token_id=tally.max_token_id,
        eod=tokenizer.eod if options.append_eod else None,
        sizes={"bin": writer.tokens * dtype.itemsize, "idx": writer.index_bytes},
        sha256={"bin": writer.sha256.hexdigest(), "idx": idx_sha256},
        sources=tuple(
            Source(
                path=str(path),
                bytes=path.stat().st_size,
                xxh3_128=content_hash(path),
                documents=tally.documents[str(path)],
                rejected=tally.rejected[str(path)],
            )
            for path in options.inputs
        ),
        created_by=f"megatron_ko {__version__}",
    )


def _rejected_line(record: Rejected) -> bytes:
    return (json.dumps(asdict(record), ensure_ascii=False) + "\n").encode("utf-8")


def _empty(options: PreprocessOptions, tally: _Tally) -> DataError:
    first = tally.first_rejected
    example = f"; the first: {first.reason} at {first.source}:{first.position}" if first else ""
    return DataError(
        "the corpus is empty: no document was found",
        got=f"{tally.rejected.total()} rejected records {dict(tally.reasons)}{example}",
        expected="at least one document",
        remedy=f"check the files and --json-key (now {options.key!r})",
    )
