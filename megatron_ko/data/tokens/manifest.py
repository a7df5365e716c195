"""PREFIX.manifest.json: what an indexed file holds, where it came from, and the hashes that prove it."""

import hashlib
import json
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path

from megatron_ko.data.tokens.identity import ChatRows
from megatron_ko.data.tokens.indexed import IndexedReader, bin_path, idx_path
from megatron_ko.errors import DataError
from megatron_ko.storage.files import append_suffix

FORMAT = 1
# What belongs to a prefix, in the order in which the files get their names.
FILES = (".bin", ".idx", ".marks", ".rejected.jsonl", ".manifest.json")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class SourceFile:
    """One input file: path as given, its size, hash, and what became of its records."""

    path: str
    bytes: int
    xxh3_128: str
    documents: int
    rejected: int


@dataclass(frozen=True)
class IndexManifest:
    """The content of a manifest.

    Attributes:
        tokenizer_fingerprint, tokenizer_kind, vocab_size: of the tokenizer that encoded the text.
        documents, tokens, bytes: in all; bytes are UTF-8 bytes of text, tokens include the end of each document.
        rejected, rejected_reasons: records that were not documents.
        dtype, max_token_id: of the tokens.
        eod: id that ends every document; None if none was appended.
        sizes, sha256: of "bin" and "idx".
        sources: the inputs in order; for a shard, only those that it holds documents or rejected records of.
        key: field that the text came from.
        shard: number of this shard, and of how many.
        bos: id that begins every document; None if none was put in front.
        unencodable: "documents" of all shards that characters without tokens were replaced in, or dropped from, and
            how many by character.
        chat: of conversations, how they became documents; PREFIX.marks then has a byte for every token.
        records: what became of the conversations, of all shards: how many there were, and for example "too long".
        trained_tokens: tokens that are trained.
    """

    tokenizer_fingerprint: str
    tokenizer_kind: str
    vocab_size: int
    documents: int
    tokens: int
    bytes: int
    rejected: int
    rejected_reasons: dict[str, int]
    dtype: str
    max_token_id: int
    eod: int | None
    sizes: dict[str, int]
    sha256: dict[str, str]
    sources: tuple[SourceFile, ...]
    created_by: str
    key: str = "text"
    shard: tuple[int, int] = (0, 1)
    bos: int | None = None
    unencodable: dict[str, int] = field(default_factory=dict)
    chat: ChatRows | None = None
    records: dict[str, int] = field(default_factory=dict)
    trained_tokens: int = 0
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"


def manifest_path(prefix: Path) -> Path:
    """PREFIX.manifest.json."""
    return append_suffix(prefix, ".manifest.json")


def marks_path(prefix: Path) -> Path:
    """PREFIX.marks: a byte for every token of PREFIX.bin, what is trained on it."""
    return append_suffix(prefix, ".marks")


def rejected_path(prefix: Path) -> Path:
    """PREFIX.rejected.jsonl."""
    return append_suffix(prefix, ".rejected.jsonl")


def read_index_manifest(prefix: Path) -> IndexManifest:
    """Read and check the form of a manifest.

    Raises:
        DataError: missing, damaged, or of another format.
    """
    path = manifest_path(prefix)
    if not path.is_file():
        # Say first if the data itself is not there: that is the more common mistake.
        IndexedReader(prefix)
        raise DataError(
            f"no manifest for {prefix}",
            got="a .bin/.idx pair alone: its tokenizer is unknown, or its writing was interrupted",
            expected=str(path),
            remedy="remove the pair and run megatron-ko data preprocess again",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise DataError(
                f"{path} has another format", got=content.get("format"), expected=FORMAT, remedy="preprocess again"
            )
        content["sources"] = tuple(SourceFile(**source) for source in content["sources"])
        content["shard"] = tuple(content.get("shard", (0, 1)))
        content["chat"] = ChatRows(**content["chat"]) if content.get("chat") else None
        named = [one.name for one in fields(IndexManifest) if one.name in content or _required(one)]
        manifest = IndexManifest(**{name: content[name] for name in named})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged", got=repr(error), remedy="copy it again, or preprocess again") from error
    return manifest


def _required(one: "Field[object]") -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def hashed_files(prefix: Path, manifest: IndexManifest) -> list[tuple[str, Path]]:
    """The files whose sizes and hashes a manifest holds, by their names there."""
    pairs = [("bin", bin_path(prefix)), ("idx", idx_path(prefix))]
    return [*pairs, ("marks", marks_path(prefix))] if manifest.chat else pairs


def check_shard(prefix: Path, manifest: IndexManifest) -> IndexedReader:
    """The cheap checks before every training: both files are complete, and are those that the manifest describes.

    Raises:
        DataError: the first difference.
    """
    reader = IndexedReader(prefix)
    sizes = {name: path.stat().st_size for name, path in hashed_files(prefix, manifest) if path.is_file()}
    described = {"documents": manifest.documents, "tokens": manifest.tokens, "dtype": manifest.dtype}
    found = {"documents": len(reader), "tokens": reader.tokens, "dtype": reader.dtype.name}
    if sizes != manifest.sizes or found != described:
        raise DataError(
            f"{prefix} is not what its manifest describes",
            got=f"{found}, sizes {sizes}",
            expected=f"{described}, sizes {manifest.sizes}",
            remedy="copy .bin, .idx and .manifest.json together again",
        )
    return reader


def verify_shard(prefix: Path) -> IndexManifest:
    """Every check there is: hashes of all bytes, the index, the largest token id.

    Raises:
        DataError: the first difference.
    """
    manifest = read_index_manifest(prefix)
    reader = check_shard(prefix, manifest)
    for name, path in hashed_files(prefix, manifest):
        digest = _sha256(path)
        if digest != manifest.sha256[name]:
            raise DataError(
                f"{path} was changed or damaged",
                got=f"sha256 {digest}",
                expected=manifest.sha256[name],
                remedy="copy it again, or make it again with megatron-ko data preprocess",
            )
    largest = reader.largest_id()
    if largest != manifest.max_token_id or largest >= manifest.vocab_size or not reader.consistent():
        raise DataError(
            f"{prefix} contradicts its manifest",
            got=f"largest token id {largest}, index {'consistent' if reader.consistent() else 'inconsistent'}",
            expected=f"largest token id {manifest.max_token_id}, below {manifest.vocab_size}",
            remedy="make it again with megatron-ko data preprocess",
        )
    return manifest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
