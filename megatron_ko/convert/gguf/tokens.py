"""The tokenizer of a GGUF file against transformers' and ours: the same ids, text, chat and ends."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_ko.convert.gates import Gate
from megatron_ko.convert.gguf.llama_cpp import LlamaModel
from megatron_ko.convert.gguf.reference import rendered
from megatron_ko.convert.gguf.vocabulary import BYTE, NORMAL, USER_DEFINED, GgufVocabulary
from megatron_ko.convert.tokenizer_class import load_oracle
from megatron_ko.data.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.data.tokenizer.check import SUITES
from megatron_ko.data.tokenizer.pieces import Spelling
from megatron_ko.errors import TokenizerError

_TIES = ", where llama.cpp takes the longest piece first and SentencePiece last: --accept-ties if that is good enough"
_SPACE, _MARK = "\u2581", "\ufeff"
_CODES = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 97)]
TEXTS: tuple[str, ...] = (
    *(text for suite in SUITES.values() for text in suite),
    *("".join(map(chr, _CODES[start : start + 64])) for start in range(0, len(_CODES), 64)),
)


@dataclass(frozen=True)
class _Found:
    """Ids of one text by each of the three."""

    text: str
    native: list[int]
    transformers: list[int]
    llama: list[int]


def tokenizer_gates(
    folder: Path, vocabulary: GgufVocabulary, model: LlamaModel, samples: Sequence[str], accept_ties: bool
) -> list[Gate]:
    """Every gate of a tokenizer.

    Args:
        folder: Hugging Face's.
        vocabulary: what the file says.
        model: the file, its vocabulary at least.
        samples: texts beside the suite.
        accept_ties: Unigram only: other pieces of exactly the same probability do not count as a difference.
    """
    oracle = load_oracle(folder)
    try:
        native = load_tokenizer(folder)
    except TokenizerError as error:
        return [Gate("our tokenizer", 1, False, str(error).splitlines()[0])]
    # llama.cpp knows some control tokens by name (<|fim_pad|>), and does not read them as text.
    added = {
        number: text
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == USER_DEFINED and not model.controls(number)
    }
    missing = _missing_bytes(native, folder) if vocabulary.algorithm == "gpt2" else frozenset()
    spelt = _spelt(native, folder, vocabulary) | {number: text.encode() for number, text in added.items()}
    texts = [*TEXTS, *samples, *_readable(spelt.values()), *(f"글 {text} 끝{text}말\n" for text in added.values())]
    plain = oracle(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    found = [
        _Found(text, ids, theirs, model.tokenise(text))
        for text, ids, theirs in zip(texts, native.encode_batch(texts), plain, strict=True)
        if not missing & set(text.encode("utf-8"))
    ]
    special = [
        _Found(
            text,
            native.encode(text, parse_special=True),
            oracle(text, add_special_tokens=False)["input_ids"],
            model.tokenise(text, parse_special=True),
        )
        for text in (*(f"글 {token} 끝\n" for token in native.special_tokens), *_chats(oracle))
    ]
    held = f"; {len(missing)} bytes have no token, and {len(texts) - len(found):,} texts with them are left out"
    ids = _ids("ids of text", found, vocabulary, accept_ties)
    return [
        replace(ids, found=(ids.found + held).removeprefix("; ")) if missing else ids,
        _ids("special tokens", special, vocabulary, accept_ties),
        _pieces(spelt, model),
        _texts(found, model, native.special_tokens.values()),
        _begin(oracle, model),
        _chat(oracle, model),
        _ends(vocabulary, model),
    ]


def _ids(name: str, found: Sequence[_Found], vocabulary: GgufVocabulary, accept_ties: bool) -> Gate:
    scores = vocabulary.scores if vocabulary.algorithm == "plamo2" else None
    skipped, ties, wrong = 0, 0, []
    for one in found:
        if one.native == one.transformers == one.llama:
            continue
        if one.native == one.transformers and _unspeakable(one.text, vocabulary):
            skipped += 1
        elif one.native == one.transformers and scores and _weight(one.native, scores) == _weight(one.llama, scores):
            ties += 1
        else:
            wrong.append(one)
    parts = [f"{len(wrong):,} differ, first {_shown(wrong[0])}"] if wrong else []
    parts += [f"{ties:,} in other pieces of the same probability{'' if accept_ties else _TIES}"] if ties else []
    parts += [f"{skipped:,} left out, which llama.cpp cannot spell"] if skipped else []
    return Gate(name, len(found), not wrong and (accept_ties or not ties), "; ".join(parts))


def _unspeakable(text: str, vocabulary: GgufVocabulary) -> bool:
    """Text with a character that llama.cpp uses itself: the space of SentencePiece, or a leading byte order mark."""
    return (vocabulary.algorithm == "llama" and _SPACE in text) or (
        vocabulary.algorithm == "plamo2" and text.startswith(_MARK)
    )


def _weight(ids: Sequence[int], scores: Sequence[float]) -> float:
    """Sum of scores, exact: they are multiples of a power of two."""
    return sum(scores[number] for number in ids)


def _shown(one: _Found) -> str:
    start = min(_common(one.native, one.transformers), _common(one.native, one.llama))
    cut = slice(start, start + 4)
    return (
        f"{one.text[:24]!r} at token {start}: ours {one.native[cut]}, transformers {one.transformers[cut]}, "
        f"llama.cpp {one.llama[cut]}"
    )


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """Length of what both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _missing_bytes(native: Tokenizer, folder: Path) -> frozenset[int]:
    """Bytes that no token spells: byte-level BPE drops them without a word, and llama.cpp does not."""
    spelling = Spelling(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    return frozenset(byte for byte, piece in enumerate(spelling.byte_pieces()) if native.id_of(piece) is None)


def _spelt(native: Tokenizer, folder: Path, vocabulary: GgufVocabulary) -> dict[int, bytes]:
    """What every ordinary token spells, by tokenizer.json."""
    spelling = Spelling(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    pieces = native.vocabulary().items()
    return {number: spelling.bytes_of(piece) for piece, number in pieces if vocabulary.kinds[number] in (NORMAL, BYTE)}


def _readable(pieces: Iterable[bytes]) -> Iterator[str]:
    """The pieces of the vocabulary that are whole characters, as texts."""
    for piece in pieces:
        with suppress(UnicodeDecodeError):
            yield piece.decode("utf-8")


def _pieces(spelt: dict[int, bytes], model: LlamaModel) -> Gate:
    """Every id spells in llama.cpp what it spells in tokenizer.json."""
    wrong = [(number, piece) for number, piece in spelt.items() if model.piece(number) != piece]
    got = ""
    if wrong:
        number, piece = wrong[0]
        got = f"{len(wrong):,} differ, first {number}: {model.piece(number)!r}, not {piece!r}"
    return Gate("spelling of every id", len(spelt), not wrong, got)


def _texts(found: Sequence[_Found], model: LlamaModel, special: Iterable[int]) -> Gate:
    """What llama.cpp writes for the ids is the text."""
    hidden = set(special)
    tried = [one for one in found if not hidden & set(one.native)]
    wrong = [one.text for one in tried if b"".join(map(model.piece, one.native)) != one.text.encode("utf-8")]
    return Gate(
        "text of ids", len(tried), not wrong, f"{len(wrong):,} differ, first {wrong[0][:24]!r}" if wrong else ""
    )


def _begin(oracle: Any, model: LlamaModel) -> Gate:
    """llama.cpp puts before a text by default what transformers does."""
    theirs, found = oracle("가")["input_ids"], model.tokenise("가", complete=True)
    return Gate("added by default", 1, found == theirs, f"{found}, in transformers {theirs}")


def _chats(oracle: Any) -> list[str]:
    return [] if oracle.chat_template is None else rendered(oracle)


def _chat(oracle: Any, model: LlamaModel) -> Gate:
    """The template in the file is the folder's."""
    theirs, found = oracle.chat_template or "", model.template or ""
    length = _common(theirs, found)
    got = "" if theirs else "none"
    if theirs != found:
        got = f"{found[length : length + 40]!r} at character {length}, not {theirs[length : length + 40]!r}"
    return Gate("chat template", 1, theirs == found, got)


def _ends(vocabulary: GgufVocabulary, model: LlamaModel) -> Gate:
    """llama.cpp stops where transformers does, and does not stop at an ordinary token."""
    names = ", ".join(vocabulary.tokens[number] for number in vocabulary.stops)
    deaf = [vocabulary.tokens[number] for number in vocabulary.stops if not model.ends(number)]
    kinds = enumerate(vocabulary.kinds)
    early = [vocabulary.tokens[number] for number, kind in kinds if kind in (NORMAL, BYTE) and model.ends(number)]
    got = (
        f"does not stop at {deaf}; it knows some by name, and can be told of the end token and two others"
        if deaf
        else f"stops at {early[:3]} too"
        if early
        else f"stops at {names}"
    )
    return Gate("end of an answer", len(vocabulary.stops), not deaf and not early, got)
