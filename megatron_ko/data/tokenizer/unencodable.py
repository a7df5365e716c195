"""Characters that a vocabulary has no tokens for: a tokenizer drops them, or puts its unknown token, without a word."""

import json
from collections.abc import Sequence

from megatron_ko.data.tokenizer.pieces import Spelling
from megatron_ko.data.tokenizer.tokenizer import TOKENIZER_JSON, Tokenizer

REPLACEMENT = "\ufffd"


def missing_bytes(tokenizer: Tokenizer) -> list[int]:
    """The bytes without a token; all of them for a vocabulary that does not spell bytes."""
    pieces = _spelling(tokenizer).byte_pieces()
    return [byte for byte, piece in enumerate(pieces) if tokenizer.id_of(piece) is None]


def hexadecimal(numbers: Sequence[int]) -> str:
    """Bytes as they are written in Python."""
    return "any byte" if len(numbers) == 256 else " ".join(f"0x{byte:02X}" for byte in numbers)


class Unencodable:
    """Finds them; knows every character after it was seen once.

    Args:
        tokenizer: what encodes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        spelling = _spelling(tokenizer)
        self._in_bytes = spelling.byte_level or spelling.byte_fallback
        # A vocabulary of all bytes encodes everything, and is not asked.
        self._complete = self._in_bytes and not missing_bytes(tokenizer)
        self._encodable: set[str] = set()

    def characters(self, text: str) -> list[str]:
        """The different characters of a text that cannot be encoded, in order."""
        if self._complete:
            return []
        unknown = set(text) - self._encodable
        bad = {character for character in unknown if not self._holds(character)}
        self._encodable |= unknown - bad
        return sorted(bad)

    def replaced(self, text: str, characters: Sequence[str]) -> str:
        """The text with U+FFFD for these characters, or a space where that has no tokens either."""
        mark = REPLACEMENT if self._holds(REPLACEMENT) else " "
        return text.translate(dict.fromkeys(map(ord, characters), mark))

    def _holds(self, character: str) -> bool:
        if self._in_bytes:
            return self._tokenizer.decode(self._tokenizer.encode(character)) == character
        ids = self._tokenizer.encode(character)
        # Vocabularies of words cut at white space.
        return character.isspace() or (bool(ids) and self._tokenizer.unk not in ids)


def _spelling(tokenizer: Tokenizer) -> Spelling:
    return Spelling(json.loads((tokenizer.folder / TOKENIZER_JSON).read_text(encoding="utf-8")))
