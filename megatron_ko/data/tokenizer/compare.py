"""How well tokenizers fit a text: tokens per eojeol and character, bytes per token, and what is spelt in bytes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from megatron_ko.data.tokenizer.pieces import Spelling
from megatron_ko.data.tokenizer.tokenizer import TOKENIZER_JSON, Tokenizer, load_tokenizer

_BATCH = 1000


@dataclass(frozen=True)
class Fit:
    """A tokenizer on a text.

    Attributes:
        tokens: in all; documents have no end token here.
        tokens_per_eojeol: an eojeol is what stands between white space.
        tokens_per_character, bytes_per_token: of Unicode characters and UTF-8 bytes, white space included.
        coverage: share of the characters other than white space that lie in pieces of whole characters; the others
            are spelt in bytes, or unknown.
        byte_share: share of tokens that are not whole characters.
        unknown_share: share of tokens that are the unknown one.
        used: share of the vocabulary that occurs.
        exact: whether every document came back as it went in.
    """

    name: str
    folder: str
    vocab_size: int
    fingerprint: str
    tokens: int
    tokens_per_eojeol: float
    tokens_per_character: float
    bytes_per_token: float
    coverage: float
    byte_share: float
    unknown_share: float
    used: float
    exact: bool


@dataclass(frozen=True)
class Comparison:
    """Several tokenizers on the same text.

    Attributes:
        documents, characters, bytes, eojeols: of the text.
        fits: one a tokenizer.
        sources: the same for the text of each source alone, by its name; empty if there is one only.
    """

    documents: int
    characters: int
    bytes: int
    eojeols: int
    fits: tuple[Fit, ...]
    sources: Mapping[str, "Comparison"] = field(default_factory=dict)


def compare_tokenizers(folders: Sequence[Path], texts: Mapping[str, Sequence[str]]) -> Comparison:
    """Every tokenizer on all texts, and on those of each source.

    Args:
        folders: of the tokenizers.
        texts: by source.

    Raises:
        TokenizerError: a folder cannot be loaded.
    """
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    tokenizers = {
        name if unique else str(folder): load_tokenizer(folder) for name, folder in zip(names, folders, strict=True)
    }
    whole = _compare(tokenizers, list(chain.from_iterable(texts.values())))
    if len(texts) < 2:
        return whole
    return replace(whole, sources={name: _compare(tokenizers, held) for name, held in texts.items()})


def _compare(tokenizers: Mapping[str, Tokenizer], texts: Sequence[str]) -> Comparison:
    visible = sum(len("".join(text.split())) for text in texts)
    sizes = Comparison(
        documents=len(texts),
        characters=sum(map(len, texts)),
        bytes=sum(len(text.encode("utf-8")) for text in texts),
        eojeols=sum(len(text.split()) for text in texts),
        fits=(),
    )
    return replace(sizes, fits=tuple(_fit(name, one, texts, sizes, visible) for name, one in tokenizers.items()))


def _fit(name: str, tokenizer: Tokenizer, texts: Sequence[str], sizes: Comparison, visible: int) -> Fit:
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    exact = True
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        batch = tokenizer.encode_batch(part)
        exact = exact and all(tokenizer.decode(ids) == text for text, ids in zip(part, batch, strict=True))
        ids = np.fromiter(chain.from_iterable(batch), dtype=np.int64)
        counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    broken, partial = broken_characters(tokenizer)
    tokens = int(counts.sum())
    unknown = int(counts[tokenizer.unk]) if tokenizer.unk is not None else 0
    lost = int((counts * broken).sum()) + unknown
    return Fit(
        name=name,
        folder=str(tokenizer.folder),
        vocab_size=tokenizer.vocab_size,
        fingerprint=tokenizer.fingerprint,
        tokens=tokens,
        tokens_per_eojeol=round(tokens / max(1, sizes.eojeols), 4),
        tokens_per_character=round(tokens / max(1, sizes.characters), 4),
        bytes_per_token=round(sizes.bytes / max(1, tokens), 4),
        coverage=round(max(0.0, 1 - lost / max(1, visible)), 6),
        byte_share=round(int(counts[partial].sum()) / max(1, tokens), 6),
        unknown_share=round(unknown / max(1, tokens), 6),
        used=round(float((counts > 0).mean()), 4),
        exact=exact,
    )


def broken_characters(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """For every id: [v] characters that begin in it and do not end in it, [v] whether it holds part of one."""
    spelling = Spelling(json.loads((tokenizer.folder / TOKENIZER_JSON).read_text(encoding="utf-8")))
    special = set(tokenizer.special_tokens.values())
    broken = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    partial = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    for piece, number in tokenizer.vocabulary().items():
        if number in special:
            continue
        spelt = spelling.bytes_of(piece)
        whole = spelt.decode("utf-8", errors="ignore")
        fallback = spelling.byte_piece(piece)
        partial[number] = fallback or len(whole.encode("utf-8")) != len(spelt)
        if partial[number]:
            begun = sum(byte & 0xC0 != 0x80 for byte in spelt)
            broken[number] = begun - (0 if fallback else len(whole))
    return broken, partial


def comparison_table(comparison: Comparison) -> list[str]:
    """The comparison as lines of a Markdown table; with several sources a row for each, and one for all."""
    parts = {**comparison.sources, "all": replace(comparison, sources={})} if comparison.sources else {"": comparison}
    head = "| tokenizer | source " if comparison.sources else "| tokenizer "
    lines = [
        f"{head}| ids | tokens an eojeol | tokens a character | bytes a token | characters in whole pieces "
        "| byte tokens | unknown | vocabulary used | round trip |",
        "|---" * (11 if comparison.sources else 10) + "|",
    ]
    for index in range(len(comparison.fits)):
        for source, part in parts.items():
            lines.append(_row(part.fits[index], source))
    return lines


def _row(fit: Fit, source: str) -> str:
    name = f"{fit.name} | {source}" if source else fit.name
    return (
        f"| {name} | {fit.vocab_size:,} | {fit.tokens_per_eojeol:.3f} | {fit.tokens_per_character:.3f} "
        f"| {fit.bytes_per_token:.3f} | {fit.coverage:.3%} | {fit.byte_share:.3%} | {fit.unknown_share:.3%} "
        f"| {fit.used:.1%} | {'exact' if fit.exact else 'NOT EXACT'} |"
    )
