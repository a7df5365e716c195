"""A loaded tokenizer: tokenizer.json decides the ids; a SentencePiece model beside it only makes them come faster."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

# One thread a process: the processes are the parallelism, and a forked thread pool of `tokenizers` may deadlock.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import tokenizers

from megatron_ko.data.tokenizer.pieces import Spelling
from megatron_ko.data.tokenizer.sentencepiece_fast import SentencePieceEncoder
from megatron_ko.errors import TokenizerError
from megatron_ko.storage.open_json import JsonObject

TokenizerKind = Literal["unigram", "bpe", "byte-bpe", "huggingface"]

TOKENIZER_JSON = "tokenizer.json"
TRANSFORMERS_CONFIG = "tokenizer_config.json"
SENTENCEPIECE_MODEL = "tokenizer.model"
# Written by `tokenizer train` only; a folder without it is a plain Hugging Face tokenizer.
RECORD = "megatron_ko.json"

# What decides ids and their meaning. Padding, truncation and post-processing are never applied here.
_DECISIVE = ("normalizer", "pre_tokenizer", "model", "decoder")


@dataclass(frozen=True)
class Encoded:
    """Many documents as one array.

    Attributes:
        ids: [t] int32 tokens of all documents, one after the other.
        lengths: [n] int64 number of tokens of each document.
        marks: [t] uint8, what is trained on each token; None for texts.
    """

    ids: np.ndarray
    lengths: np.ndarray
    marks: np.ndarray | None = None


class Tokenizer:
    """Encodes and decodes; made by ``load_tokenizer``.

    Text is only text unless ``parse_special`` is set: a document that spells ``</s>`` does not end there. With it, the
    spelling of a special token becomes that token, as in ``AutoTokenizer(text)``; without, as with
    ``split_special_tokens=True`` there.

    Attributes:
        folder: where it was loaded from.
        kind: unigram, bpe, byte-bpe, or huggingface for a folder that was not trained here.
        vocab_size: number of ids.
        eod: id that ends a document.
        bos, pad, unk: ids, None where the folder defines none.
        special_tokens: name to id.
        added_tokens: name to id of these and of others that stand outside of the trained vocabulary.
        user_defined: tokens that stand for their own text, wherever it is; to id.
        fingerprint: sha256 of everything that decides the ids.
    """

    def __init__(self, folder: Path, kind: TokenizerKind, backend: tokenizers.Tokenizer, named: dict[str, str]) -> None:
        self.folder, self.kind = folder, kind
        self._special = backend
        self._plain = tokenizers.Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        content = json.loads(backend.to_str())
        self.added_tokens: dict[str, int] = {token["content"]: token["id"] for token in content["added_tokens"]}
        self.special_tokens: dict[str, int] = {
            token["content"]: token["id"] for token in content["added_tokens"] if token["special"]
        }
        self.user_defined: dict[str, int] = {
            token["content"]: token["id"] for token in content["added_tokens"] if not token["special"]
        }
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.eod = self._required_id(named, "eos_token")
        self.bos, self.pad, self.unk = (self._id(named, name) for name in ("bos_token", "pad_token", "unk_token"))
        self.fingerprint = _fingerprint(content, self.eod)
        self._fast: SentencePieceEncoder | None = None
        if kind in ("unigram", "bpe"):
            self._fast = SentencePieceEncoder(folder / SENTENCEPIECE_MODEL, self._reference, self.user_defined)

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Ids of ``text``; nothing is added at either end."""
        if parse_special and any(token in text for token in self.special_tokens):
            ids: list[int] = self._special.encode(text, add_special_tokens=False).ids
            return ids
        return self._fast.encode(text) if self._fast else self._reference(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, special tokens not parsed."""
        return self._fast.encode_batch(texts) if self._fast else self.reference_batch(texts)

    def encode_documents(self, texts: Sequence[str], *, append_eod: bool, bos: int | None = None) -> Encoded:
        """Ids of many documents in one array, the fastest way in; special tokens are not parsed.

        Args:
            texts: of the documents.
            append_eod: end each of them with the end-of-document token.
            bos: id that each begins with, if any.
        """
        if not texts:
            return Encoded(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64))
        if self._fast is None:
            begin = [] if bos is None else [bos]
            end = [self.eod] if append_eod else []
            batch = [begin + ids + end for ids in self.reference_batch(texts)]
            lengths = np.fromiter(map(len, batch), dtype=np.int64, count=len(batch))
            flat = np.fromiter(chain.from_iterable(batch), dtype=np.int32, count=int(lengths.sum()))
            return Encoded(flat, lengths)
        ids, ends = self._fast.encode_documents(texts)
        lengths = np.diff(ends, prepend=-1)
        if append_eod:
            ids[ends] = self.eod
        else:
            ids, lengths = np.delete(ids, ends), lengths - 1
        if bos is not None:
            ids, lengths = np.insert(ids, np.cumsum(lengths) - lengths, bos), lengths + 1
        return Encoded(ids, lengths)

    def reference_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As ``encode_batch``, through tokenizer.json alone: what transformers gives."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._special.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def id_of(self, token: str) -> int | None:
        """Id of a token by its spelling in the vocabulary."""
        number: int | None = self._special.token_to_id(token)
        return number

    def vocabulary(self) -> dict[str, int]:
        """Every piece and special token with its id."""
        pieces: dict[str, int] = self._special.get_vocab(with_added_tokens=True)
        return pieces

    def token_bytes(self) -> np.ndarray:
        """[vocab_size] UTF-8 bytes of text that each token spells; 0 for special tokens and ids without a token.

        A space that a tokenizer puts before a document by itself counts, as it does in what a model predicts.
        """
        spelling = Spelling(json.loads(self._plain.to_str()))
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for piece, number in self.vocabulary().items():
            if piece not in self.special_tokens:
                lengths[number] = len(spelling.bytes_of(piece))
        return lengths

    def pieces_of_word(self, word: str) -> list[int]:
        """Ids of a word as the model of `tokenizers` spells it, neither normalised nor cut."""
        return [token.id for token in self._plain.model.tokenize(word)]

    def _reference(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def _id(self, named: dict[str, str], name: str) -> int | None:
        return self.id_of(named[name]) if name in named else None

    def _required_id(self, named: dict[str, str], name: str) -> int:
        number = self._id(named, name)
        if number is None:
            raise TokenizerError(
                "the tokenizer does not say which token ends a document",
                got=f"{name} = {named.get(name)!r} in {self.folder / TRANSFORMERS_CONFIG}",
                expected="a token of the vocabulary",
                remedy=f"set {name!r} in {TRANSFORMERS_CONFIG}",
            )
        return number


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a folder that ``tokenizer train`` wrote, or any Hugging Face folder with a tokenizer.json.

    Raises:
        TokenizerError: the folder is missing, incomplete or damaged.
    """
    folder = Path(folder)
    path = folder / TOKENIZER_JSON
    if not path.is_file():
        raise TokenizerError(
            f"no tokenizer at {folder}",
            got="no such folder" if not folder.is_dir() else f"no {TOKENIZER_JSON} in it",
            expected=f"a folder with {TOKENIZER_JSON} and {TRANSFORMERS_CONFIG}",
            remedy="megatron-ko tokenizer train --input FILE --vocab-size N --output DIR",
        )
    record = _read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    named = _named_tokens(_read_json(folder / TRANSFORMERS_CONFIG))
    kind: TokenizerKind = record.get("kind", "huggingface")
    if kind in ("unigram", "bpe") and not (folder / SENTENCEPIECE_MODEL).is_file():
        raise TokenizerError(f"{folder} is incomplete", got=f"no {SENTENCEPIECE_MODEL}", remedy="copy the whole folder")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises plain Exception for every damage
        raise TokenizerError(f"{path} is damaged", got=str(error), remedy="copy or train it again") from error
    tokenizer = Tokenizer(folder, kind, backend, named)
    recorded = record.get("fingerprint", tokenizer.fingerprint)
    if recorded != tokenizer.fingerprint:
        raise TokenizerError(
            f"{folder} was changed after it was trained",
            got=f"fingerprint {tokenizer.fingerprint[:16]}",
            expected=f"{recorded[:16]}, as recorded in {RECORD}",
            remedy="restore the folder; ids of data encoded before would mean other text",
        )
    return tokenizer


def _read_json(path: Path) -> JsonObject:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"cannot read {path}", got=str(error), remedy="copy the whole folder again") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"cannot read {path}", got=type(content).__name__, expected="a JSON object")
    return content


def _named_tokens(config: JsonObject) -> dict[str, str]:
    """bos_token, eos_token, ... of tokenizer_config.json; some folders write them as objects."""
    named = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            named[name] = value
    return named


def _fingerprint(content: JsonObject, eod: int) -> str:
    """sha256 over the parts that decide ids, in canonical JSON."""
    decisive = {name: content.get(name) for name in _DECISIVE}
    decisive["added_tokens"] = [[token["id"], token["content"], token["special"]] for token in content["added_tokens"]]
    decisive["eod"] = eod
    text = json.dumps(decisive, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
