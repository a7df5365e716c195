"""The fast path: SentencePiece encoding of many documents at once, exactly equal to tokenizer.json.

SentencePiece is 3-7 times faster than `tokenizers` on the same vocabulary. Two things make the ids provably the same:

* A line break is always a token of its own and no other piece holds one, so the text between two line breaks is
  segmented independently of everything else. Text may therefore be cut, and documents may be joined, at line breaks.
* Unigram scores are multiples of 1/64 (see ``convert.QUANTUM``). SentencePiece sums them in float32, `tokenizers` in
  float64. Below 2**18 such a sum is exact in both, in every order, hence so are the comparisons and the ties. A chunk
  is therefore limited to as many characters as cannot reach 2**18, and what cannot be cut goes to tokenizer.json.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from megatron_ko.data.tokenizer.convert import EXACT_SUM, SPACE, piece_scores

NEWLINE = "\n"
# Longer chunks bring nothing, and BPE (no sums, hence no limit) keeps its working set in the cache.
_LARGEST_CHUNK = 8192
# SentencePiece's score of a character outside the vocabulary, below the lowest score of a piece.
_UNKNOWN_PENALTY = 10.0

ReferenceEncoder = Callable[[str], list[int]]


class SentencePieceEncoder:
    """Encodes with a .model file; ``reference`` encodes the rare text for which equality is not certain.

    Args:
        model: the SentencePiece model.
        reference: encodes one text with tokenizer.json.
        user_defined: tokens that stand for their own text. Chunks that hold one go to ``reference``: SentencePiece
            scores them with fractions, `tokenizers` cuts the text at them.
    """

    def __init__(self, model: Path, reference: ReferenceEncoder, user_defined: Iterable[str] = ()) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self._reference = reference
        self._apart = re.compile("|".join(map(re.escape, (SPACE, *user_defined))))
        lowest = min(piece_scores(model.read_bytes()), default=0.0)
        self.chunk_characters = max(1, min(_LARGEST_CHUNK, int(EXACT_SUM / (abs(lowest) + _UNKNOWN_PENALTY))))
        (self.newline_id,) = self._processor.encode(NEWLINE)

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        if self._certain(text):
            ids: list[int] = self._processor.encode(text)
            return ids
        return [int(token) for token in self._encode_long(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        if all(map(self._certain, texts)):
            batch: list[list[int]] = self._processor.encode(list(texts), num_threads=1)
            return batch
        return [self.encode(text) for text in texts]

    def encode_documents(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all documents in one array, and where each one ends.

        Documents are joined by line breaks and encoded together, which spares a Python list for each of them.

        Returns:
            ids [t] (int32) with one extra line-break token after every document, and the position [n] of that token.
        """
        ids = self._encode_long(NEWLINE.join(texts) + NEWLINE)
        breaks = np.flatnonzero(ids == self.newline_id)
        own = np.fromiter((text.count(NEWLINE) for text in texts), dtype=np.int64, count=len(texts))
        return ids, breaks[np.cumsum(own + 1) - 1]

    def _certain(self, text: str) -> bool:
        """Whether SentencePiece gives the ids of tokenizer.json for certain."""
        return len(text) <= self.chunk_characters and self._apart.search(text) is None

    def _encode_long(self, text: str) -> np.ndarray:
        exact: list[str] = []
        order: list[np.ndarray | None] = []
        for chunk in _chunks(text, self.chunk_characters):
            if self._certain(chunk):
                exact.append(chunk)
                order.append(None)
            else:
                order.append(np.array(self._reference(chunk), dtype=np.int32))
        arrays = iter(self._processor.encode_as_numpy(exact, num_threads=1) if exact else ())
        return np.concatenate([next(arrays) if done is None else done for done in order])


def _chunks(text: str, limit: int) -> Iterator[str]:
    """Cut ``text`` where segmentation cannot cross: after a line break, else before a space that follows a non-space.

    A chunk is longer than ``limit`` only where no such place exists.
    """
    start = 0
    while len(text) - start > limit:
        cut = text.rfind(NEWLINE, start, start + limit) + 1
        if cut <= start:
            cut = _last_word_start(text, start, start + limit)
        if cut <= start:
            following = [text.find(NEWLINE, start + limit) + 1, _next_word_start(text, start + limit)]
            cut = min((place for place in following if place > start), default=len(text))
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def _last_word_start(text: str, low: int, high: int) -> int:
    """The last position in (low, high) that holds a space after a non-space; ``low`` when there is none."""
    place = text.rfind(" ", low + 1, high)
    while place > low and text[place - 1] == " ":
        place -= 1
    return max(place, low)


def _next_word_start(text: str, low: int) -> int:
    place = text.find(" ", low)
    while place > 0 and text[place - 1] == " ":
        place = text.find(" ", place + 1)
    return place
