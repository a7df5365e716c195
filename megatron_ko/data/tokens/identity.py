"""What decides every byte of indexed files: kept in job.json while they are made; ``merge`` needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_ko.data.jobs.chunks import InputIdentity
from megatron_ko.data.jobs.job import identity_to_json
from megatron_ko.storage.open_json import JsonObject

# What becomes of a document with characters that the vocabulary has no tokens for: it is rejected; it is encoded with
# U+FFFD in their place; it is encoded as the tokenizer does, which mostly drops them.
UnencodablePolicy = Literal["refuse", "replace", "keep"]


@dataclass(frozen=True)
class EncodedWith:
    """The tokenizer of indexed files, as far as their bytes and manifests depend on it.

    Attributes:
        fingerprint, kind, vocab_size: of the tokenizer.
        eod: the id that ends every document; None if none is appended.
        bos: the id that begins every document; None if none is put in front.
    """

    fingerprint: str
    kind: str
    vocab_size: int
    eod: int | None
    bos: int | None = None

    def without_borders(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids of a document's text alone."""
        return ids[self.bos is not None : len(ids) - (self.eod is not None)]


# What a row of conversations is: one document; a better and a worse answer, two documents; an answer with a verdict and
# an answer to another prompt, two documents.
RowKind = Literal["chat", "pairs", "verdicts"]


@dataclass(frozen=True)
class ChatRows:
    """How conversations became documents whose tokens are marked.

    Attributes:
        kind: what a row is.
        template: sha256 of the chat template.
        train_on: which tokens of a conversation are trained.
        longest: positions that a row may take in a training sample; None: any number.
        too_long: what becomes of longer ones.
        renamed: fields of the inputs, and what they are called in the schema.
    """

    kind: RowKind
    template: str
    train_on: str
    longest: int | None
    too_long: str
    renamed: dict[str, str]

    @property
    def documents(self) -> int:
        """Documents of a row."""
        return 1 if self.kind == "chat" else 2


@dataclass(frozen=True)
class PreprocessIdentity:
    """Inputs and options of a ``data preprocess``, ``chat`` or ``preference``.

    Attributes:
        inputs: the files, with their sizes and hashes.
        chunk_bytes: how much text goes into one part.
        format, text_unit: how the inputs are read.
        keys: text fields.
        outputs: name of the output of each key.
        shards, shard_tokens: how many shards, or how large they are; both None if the output is not cut.
        tokenizer: what encodes the text.
        unencodable: what becomes of documents with characters that have no tokens.
        chat: of conversations, how they became documents.
        encoding: of text inputs.
    """

    inputs: InputIdentity
    chunk_bytes: int
    format: str | None
    text_unit: str
    keys: tuple[str, ...]
    outputs: tuple[str, ...]
    shards: int | None
    shard_tokens: int | None
    tokenizer: EncodedWith
    unencodable: UnencodablePolicy = "refuse"
    chat: ChatRows | None = None
    encoding: str = "utf-8"

    @property
    def sharded(self) -> bool:
        """Whether the output is cut into shards."""
        return self.shards is not None or self.shard_tokens is not None

    def to_json(self) -> JsonObject:
        """For job.json; ``from_json`` reads it."""
        return identity_to_json(self)

    @classmethod
    def from_json(cls, content: JsonObject) -> "PreprocessIdentity":
        """The identity that gave ``content``."""
        fields = {name.replace(" ", "_"): value for name, value in content.items()}
        fields["keys"], fields["outputs"] = tuple(fields["keys"]), tuple(fields["outputs"])
        fields["tokenizer"] = EncodedWith(**fields["tokenizer"])
        fields["chat"] = ChatRows(**fields["chat"]) if fields.get("chat") else None
        return cls(**fields)
