"""Files of conversations or preferences to indexed tokens and marks, by the engine of ``data preprocess``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ko.data.chat.conversation import recognise
from megatron_ko.data.chat.encode import ChatEncodeOptions, EncodeConversations
from megatron_ko.data.chat.preference import recognise_preference
from megatron_ko.data.chat.rows import RowOptions
from megatron_ko.data.jobs.chunks import chunk_bytes, input_identity
from megatron_ko.data.jobs.job import Job, check_job
from megatron_ko.data.text.blocks import BLOCK_BYTES, Block, open_span, read_spans
from megatron_ko.data.text.formats import InputFormat, TextUnit
from megatron_ko.data.text.inputs import check_inputs, expand_inputs, format_of
from megatron_ko.data.text.records import Reading
from megatron_ko.data.text.streams import STDIN
from megatron_ko.data.text.whole_records import parse_records
from megatron_ko.data.tokenizer.chat_template import load_template
from megatron_ko.data.tokenizer.tokenizer import load_tokenizer
from megatron_ko.data.tokens.identity import ChatRows, EncodedWith, PreprocessIdentity, RowKind
from megatron_ko.data.tokens.merge import IndexedOutput, job_folder, merge
from megatron_ko.data.tokens.preprocess import BytesProgress, encode_parts, refuse_existing
from megatron_ko.errors import DataError
from megatron_ko.storage.journal import finish_renames


@dataclass(frozen=True)
class ChatOptions:
    """What to encode into what.

    Attributes:
        inputs: files with fields; rows keep their order.
        tokenizer: folder, with a chat template in it.
        output: prefix of the files that are written.
        preference: whether records are preferences, of the kind that the first one is of.
        workers: encoding processes.
        rows: how conversations become rows.
        renamed: fields of the inputs, and what the schema calls them.
        format: of all inputs; None: as their suffixes say.
        chunk_bytes: what a worker does at a time; None: by the size of the inputs.
    """

    inputs: tuple[Path, ...]
    tokenizer: Path
    output: Path
    preference: bool = False
    workers: int = 1
    rows: RowOptions = field(default_factory=RowOptions)
    renamed: Mapping[str, str] = field(default_factory=dict)
    format: InputFormat | None = None
    chunk_bytes: int | None = None


def preprocess_chat(options: ChatOptions, progress: BytesProgress = lambda _: None) -> IndexedOutput:
    """Encode conversations or preferences. Started again after a kill, it goes on where it stopped.

    Raises:
        DataError: bad input, nothing to train on, an existing output, a full disk, a dead worker.
        TokenizerError: the tokenizer has no usable chat template.
    """
    folder = job_folder(options.output)
    inputs = expand_inputs(options.inputs, options.format)
    check_inputs(inputs, options.format)
    _check_fields(inputs, options.format)
    kind = find_kind(options, inputs)
    identity = _identity(options, inputs, kind)
    job = Job(folder, identity.to_json(), options.workers)
    check_job(job)
    if not finish_renames(folder):
        refuse_existing((options.output,))
        _encode(job, options, inputs, kind, progress)
    (written,) = merge(options.output, options.workers)
    return written


def find_kind(options: ChatOptions, inputs: tuple[Path, ...]) -> RowKind:
    """What the first record is.

    Raises:
        DataError: none of the known schemas.
    """
    for block in _blocks(inputs, options.format):
        parsed = parse_records(block)
        for record in parsed.records:
            fields = {options.renamed.get(name, name): held for name, held in record.items() if held is not None}
            kind = recognise_preference(fields) if options.preference else ("chat" if recognise(fields) else None)
            if kind is not None:
                return kind
        for record, position in zip(parsed.records[:1], parsed.positions, strict=False):
            known = (
                "prompt, chosen, rejected; or prompt, completion, label"
                if options.preference
                else "messages; conversations; instruction, output; or prompt, completion"
            )
            raise DataError(
                f"{block.source} holds no {'preferences' if options.preference else 'conversations'} of a known form",
                got=f"record {position} has the fields {', '.join(record)}",
                expected=known,
                remedy="rename fields: --map FIELD=NAME",
            )
    raise DataError("the inputs hold no record", got=", ".join(map(str, inputs)), remedy="check --input")


def _blocks(inputs: tuple[Path, ...], format: InputFormat | None) -> Iterator[Block]:
    reading = Reading(inputs, keep_fields=True, whole_records=True, format=format)
    for path in inputs:
        for span in read_spans(path, reading, BLOCK_BYTES):
            yield from open_span(span)


def _check_fields(inputs: tuple[Path, ...], format: InputFormat | None) -> None:
    for path in inputs:
        if path == STDIN or format_of(path, format) in ("txt", "wet"):
            raise DataError(
                "conversations are read from files with fields",
                got="the standard input" if path == STDIN else str(path),
                expected="jsonl, csv, tsv, parquet or arrow",
                remedy="give such a file; --format names what a suffix does not say",
            )


def _identity(options: ChatOptions, inputs: tuple[Path, ...], kind: RowKind) -> PreprocessIdentity:
    tokenizer = load_tokenizer(options.tokenizer)
    rows = options.rows
    return PreprocessIdentity(
        inputs=input_identity(inputs),
        chunk_bytes=options.chunk_bytes or chunk_bytes(inputs),
        format=options.format,
        text_unit=TextUnit.line,
        keys=("text",),
        outputs=(options.output.name,),
        shards=None,
        shard_tokens=None,
        tokenizer=EncodedWith(tokenizer.fingerprint, tokenizer.kind, tokenizer.vocab_size, None),
        chat=ChatRows(
            kind=kind,
            template=load_template(tokenizer).sha256,
            train_on=rows.train_on,
            longest=rows.longest,
            too_long=rows.too_long,
            renamed=dict(options.renamed),
        ),
    )


def _encode(job: Job, options: ChatOptions, inputs: tuple[Path, ...], kind: RowKind, progress: BytesProgress) -> None:
    work = EncodeConversations(ChatEncodeOptions(options.tokenizer, kind, options.rows, options.renamed))
    reading = Reading(
        inputs, keep_fields=True, whole_records=True, format=options.format, chunk_bytes=options.chunk_bytes
    )
    encode_parts(job, reading, work, progress)
