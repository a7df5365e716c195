"""Text files to indexed tokens: chunks are encoded into parts, parts are merged; see ``jobs`` for what survives a kill.

The files depend on the inputs and options alone: not on the number of workers or ranks, nor on kills and restarts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ko.data.jobs.chunks import Chunk, chunk_bytes, identified_paths, input_identity, read_chunks
from megatron_ko.data.jobs.job import Job, Part, Work, check_job, remove_job, run_job
from megatron_ko.data.text.formats import Encoding, InputFormat, TextUnit
from megatron_ko.data.text.inputs import check_inputs, expand_inputs, format_of
from megatron_ko.data.text.records import Reading
from megatron_ko.data.text.streams import STDIN
from megatron_ko.data.tokenizer.tokenizer import TRANSFORMERS_CONFIG, Tokenizer, load_tokenizer
from megatron_ko.data.tokens.encode import EncodeChunk, EncodeOptions
from megatron_ko.data.tokens.identity import EncodedWith, PreprocessIdentity, UnencodablePolicy
from megatron_ko.data.tokens.manifest import FILES
from megatron_ko.data.tokens.merge import IndexedOutput, job_folder, merge
from megatron_ko.data.tokens.parts import EncodeStatistics
from megatron_ko.data.tokens.shards import any_shards
from megatron_ko.errors import DataError, TokenizerError
from megatron_ko.storage.files import append_suffix
from megatron_ko.storage.journal import finish_renames

# Called with the bytes of all inputs that have been read and encoded so far.
BytesProgress = Callable[[int], None]


@dataclass(frozen=True)
class PreprocessOptions:
    """What to encode into what.

    Attributes:
        inputs: files, folders, patterns, ``-``; documents keep their order.
        tokenizer: folder.
        output: prefix of the files that are written; with several keys, PREFIX_KEY.
        workers: encoding processes; 1 encodes in this process.
        keys: text fields; each gives an output of its own, and document n of one belongs to document n of the other.
        append_eod: end every document with the tokenizer's end-of-document token.
        bos: begin every document with the tokenizer's token for that.
        text_unit: a document of a .txt file is a "line" or the whole "file".
        format: of all inputs; None: as their suffixes say.
        encoding: of text inputs.
        shards: number of shards to cut every output into, of about equally many tokens.
        shard_tokens: cut into as many shards as give about this many tokens in each.
        rank, size: this process takes every ``size``-th chunk; ``merge`` follows when all ranks are finished.
        verify: decode samples of what was written, and compare them with the text.
        chunk_bytes: what a worker does at a time; None: by the size of the inputs.
        unencodable: what becomes of documents with characters that the vocabulary has no tokens for.
        names: of the outputs of ``keys``, in the folder of ``output``; empty: they follow from it and the keys.
    """

    inputs: tuple[Path, ...]
    tokenizer: Path
    output: Path
    workers: int = 1
    keys: tuple[str, ...] = ("text",)
    append_eod: bool = True
    bos: bool = False
    text_unit: TextUnit = TextUnit.line
    format: InputFormat | None = None
    encoding: Encoding = Encoding.utf_8
    shards: int | None = None
    shard_tokens: int | None = None
    rank: int = 0
    size: int = 1
    verify: bool = False
    chunk_bytes: int | None = None
    unencodable: UnencodablePolicy = "refuse"
    names: tuple[str, ...] = ()

    def outputs(self) -> tuple[Path, ...]:
        """The prefix of every key."""
        several = tuple(f"{self.output.name}_{key}" for key in self.keys)
        names = self.names or (several if len(self.keys) > 1 else (self.output.name,))
        return tuple(self.output.with_name(name) for name in names)


def preprocess(options: PreprocessOptions, progress: BytesProgress = lambda _: None) -> list[IndexedOutput]:
    """Encode this rank's share; a single rank also merges. Started again after a kill, it goes on where it stopped.

    Returns:
        what was written, by key and shard; nothing where several ranks share the work.

    Raises:
        DataError: bad input, an empty corpus, an existing output, a full disk, a dead worker. No file has a final name.
        TokenizerError: the tokenizer cannot be loaded, or has no token to begin documents with.
    """
    folder = job_folder(options.output)
    inputs = expand_inputs(options.inputs, options.format)
    check_inputs(inputs, options.format)
    _check_keys(options, inputs)
    if STDIN in inputs:
        _forget_earlier_input(options, folder)
    identity = _identity(options, inputs)
    job = Job(folder, identity.to_json(), options.workers, options.rank, options.size)
    check_job(job)
    if not finish_renames(folder):
        refuse_existing(options.outputs())
        _encode(job, options, identity, progress)
    if options.size > 1:
        return []
    return merge(options.output, options.workers, options.tokenizer if options.verify else None)


def _encode(job: Job, options: PreprocessOptions, identity: PreprocessIdentity, progress: BytesProgress) -> None:
    work = EncodeChunk(
        EncodeOptions(
            options.tokenizer,
            options.keys,
            options.append_eod,
            bos=identity.tokenizer.bos,
            text_bytes=identity.sharded,
            unencodable=options.unencodable,
        )
    )
    reading = Reading(
        tuple(identified_paths(identity.inputs)),
        options.keys[0],
        options.text_unit,
        extra_keys=options.keys[1:],
        format=options.format,
        chunk_bytes=options.chunk_bytes,
        encoding=options.encoding,
    )
    encode_parts(job, reading, work, progress)


def encode_parts(job: Job, reading: Reading, work: Work[Chunk, EncodeStatistics], progress: BytesProgress) -> None:
    """Do what is left of this rank's share of a job, and tell the bytes of all inputs that are done."""
    done = 0

    def count(part: Part[EncodeStatistics]) -> None:
        nonlocal done
        done += part.statistics["read"]
        progress(done)

    run_job(job, read_chunks(reading), work, count)


def _identity(options: PreprocessOptions, inputs: tuple[Path, ...]) -> PreprocessIdentity:
    tokenizer = load_tokenizer(options.tokenizer)
    return PreprocessIdentity(
        inputs=input_identity(inputs),
        chunk_bytes=options.chunk_bytes or chunk_bytes(inputs),
        format=options.format,
        text_unit=options.text_unit,
        keys=options.keys,
        outputs=tuple(prefix.name for prefix in options.outputs()),
        shards=options.shards,
        shard_tokens=options.shard_tokens,
        tokenizer=EncodedWith(
            tokenizer.fingerprint,
            tokenizer.kind,
            tokenizer.vocab_size,
            tokenizer.eod if options.append_eod else None,
            _bos(tokenizer, options.append_eod) if options.bos else None,
        ),
        unencodable=options.unencodable,
        encoding=options.encoding.value,
    )


def _bos(tokenizer: Tokenizer, append_eod: bool) -> int:
    """The id to begin documents with.

    Raises:
        TokenizerError: the tokenizer has none, or it is the one that ends the document before.
    """
    config = tokenizer.folder / TRANSFORMERS_CONFIG
    if tokenizer.bos is None:
        raise TokenizerError(
            "the tokenizer does not say which token begins a document",
            got=f"no bos_token in {config}",
            expected="a token of the vocabulary",
            remedy="leave out --bos, or set 'bos_token' there to the token that the model was trained with",
        )
    if append_eod and tokenizer.bos == tokenizer.eod:
        raise TokenizerError(
            "the same token would end a document and begin the next one",
            got=f"bos_token and eos_token are both id {tokenizer.bos} in {config}",
            expected="two tokens; or one, which already stands before every document but the first",
            remedy="leave out --bos; or --bos --no-append-eod, to have it in front only",
        )
    return tokenizer.bos


def _check_keys(options: PreprocessOptions, inputs: tuple[Path, ...]) -> None:
    if any("/" in name for name in options.names) or (len(options.keys) > 1 and "/" in "".join(options.keys)):
        raise DataError(
            "a key is part of the names of the files, and cannot have a '/' in it",
            got=", ".join(options.keys),
            remedy="rename that field, or encode it alone: --json-key KEY --output PREFIX",
        )
    plain = [path for path in inputs if format_of(path, options.format) in ("txt", "wet")]
    if len(set(options.keys)) < len(options.keys) or (len(options.keys) > 1 and plain):
        raise DataError(
            "several keys need inputs that have fields, and each key once",
            got=f"keys {', '.join(options.keys)}" + (f", and {plain[0]}" if plain else ""),
            expected="jsonl, csv, tsv, parquet or arrow",
            remedy="encode such files by themselves",
        )


def refuse_existing(outputs: Sequence[Path]) -> None:
    """Refuse prefixes of which a file exists already.

    Raises:
        DataError: which files.
    """
    present = [str(path) for prefix in outputs for suffix in FILES if (path := append_suffix(prefix, suffix)).exists()]
    present += [str(path) for prefix in outputs for path in any_shards(prefix)]
    if present:
        raise DataError(
            "the output exists already; nothing is overwritten",
            got=", ".join(present[:8]),
            remedy="choose another --output, or remove these files",
        )


def _forget_earlier_input(options: PreprocessOptions, folder: Path) -> None:
    """Earlier input from a pipe cannot be compared with what comes now, so no run goes on from an earlier one."""
    if options.size > 1:
        raise DataError("several ranks cannot share the standard input", remedy="give the files by their names")
    finish_renames(folder)
    remove_job(folder)
