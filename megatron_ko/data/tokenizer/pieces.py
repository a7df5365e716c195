"""What a piece of a vocabulary spells, whether that proves Korean, and whether it may become a piece of its own."""

import codecs
import json
import re

from tokenizers import pre_tokenizers

from megatron_ko.storage.open_json import JsonObject

MARK = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Bytes that occur in UTF-8 only where a Hangul syllable or jamo stands: no other character begins like this.
_HANGUL = re.compile(
    rb"\xea[\xb0-\xbf]|[\xeb\xec][\x80-\xbf]|\xed[\x80-\x9f]"  # U+AC00-D7FF
    rb"|\xe1[\x84-\x87]"  # U+1100-11FF
    rb"|\xe3(?:\x84[\xb0-\xbf]|\x85|\x86[\x80-\x8f])"  # U+3130-318F
)
_LONGEST = 16


class Spelling:
    """How a model of `tokenizers` writes bytes: the letters of byte-level BPE, or <0x0A> and U+2581.

    Attributes:
        byte_level: pieces are spelt in the 256 letters of byte-level BPE.
        byte_fallback: a character without a piece becomes pieces like <0x0A>.
    """

    def __init__(self, content: JsonObject) -> None:
        self.byte_level = '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
        self.byte_fallback = bool(content["model"].get("byte_fallback"))
        self._letters = _letters()

    def bytes_of(self, piece: str) -> bytes:
        """UTF-8, or parts of it, with plain spaces."""
        if self.byte_level:
            # A letter outside of the alphabet belongs to a special token.
            return b"".join(self._letters.get(letter, letter.encode("utf-8")) for letter in piece)
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace(MARK, " ").encode("utf-8")

    def byte_piece(self, piece: str) -> bool:
        """Whether it is one of <0x00> to <0xFF>, which take no part in merges."""
        return not self.byte_level and _BYTE_PIECE.fullmatch(piece) is not None

    def byte_pieces(self) -> list[str]:
        """The pieces for single bytes, in the order of the bytes."""
        if not self.byte_level:
            return [f"<0x{byte:02X}>" for byte in range(256)]
        by_byte = {spelt: letter for letter, spelt in self._letters.items()}
        return [by_byte[bytes([byte])] for byte in range(256)]


def proves_hangul(spelt: bytes) -> bool:
    """Whether text that holds these bytes holds Hangul for certain."""
    return _HANGUL.search(spelt) is not None


def may_be_added(spelt: bytes) -> bool:
    """Whether a piece may join a vocabulary without touching text that has no Hangul.

    It proves Hangul, begins where a character begins, has a space at its beginning only, and is made of whole
    characters, or is the beginning of one syllable, which it takes to build it.
    """
    if not proves_hangul(spelt) or b" " in spelt[1:]:
        return False
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        whole = decoder.decode(spelt)
    except UnicodeDecodeError:
        return False
    begun = decoder.getstate()[0]
    return len(whole) <= _LONGEST and not (begun and proves_hangul(whole.encode("utf-8")))


def _letters() -> dict[str, bytes]:
    """The letters of byte-level BPE: printable Latin-1 as it is, the other bytes from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): bytes([byte]) for byte in printable}
    table |= {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table
