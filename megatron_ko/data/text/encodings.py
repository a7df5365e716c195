"""Korean text in other encodings than UTF-8: which one it is, and its bytes as UTF-8.

CP949 is what Windows writes in Korea; EUC-KR is a part of it.
"""

import codecs
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from megatron_ko.data.text.formats import Encoding
from megatron_ko.errors import DataError

# Bytes that cannot be decoded become this one, which never occurs in UTF-8: their record is rejected like any other
# that is not UTF-8. The bytes themselves might happen to be UTF-8 for something else.
_MARK = "\udcff"
_FIRST, _LAST = "가", "힣"
# Syllables that are no coincidence.
_EVIDENCE = 8
_ASCII = bytes(range(128))
_LONG = re.compile("[\u0800-\U0010ffff]")
codecs.register_error("mark", lambda error: (_MARK, error.end))  # type: ignore[attr-defined]


class Readable(Protocol):
    """What this module reads from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""


class Transcoded:
    """The bytes of a stream as UTF-8.

    Args:
        path: of the file, for messages.
        raw: its decompressed bytes.
        encoding: that they are in.
    """

    def __init__(self, path: Path, raw: Readable, encoding: Encoding) -> None:
        self._path, self._raw, self._encoding = path, raw, encoding
        self._decoder = codecs.getincrementaldecoder(encoding.value)("mark")
        self._held, self._fresh, self._ended = b"", True, False

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; fewer only at the end.

        Raises:
            DataError: the file is plainly in another encoding.
        """
        while len(self._held) < size and not self._ended:
            content = self._raw.read(size)
            if self._fresh:
                self._refuse_others(content)
                self._fresh = False
            self._ended = not content
            self._held += self._decoder.decode(content, self._ended).encode("utf-8", "surrogateescape")
        result, self._held = self._held[:size], self._held[size:]
        return result

    def _refuse_others(self, beginning: bytes) -> None:
        """Some lines of UTF-8 are CP949 too, for something else: such a file is not read line by line."""
        found = marked_encoding(beginning)
        if found is None and self._encoding is Encoding.cp949 and _mostly_utf8(beginning):
            found = Encoding.utf_8
        if self._encoding is Encoding.utf_16 and found is None and beginning:
            raise DataError(
                f"{self._path} is not in UTF-16",
                got=f"no byte order mark, but bytes {beginning[:2].hex(' ')}",
                expected="ff fe or fe ff at its beginning",
                remedy="--encoding auto; for UTF-16 without a mark: iconv -f UTF-16LE -t UTF-8 FILE > NEW_FILE",
            )
        if found not in (None, self._encoding):
            raise other_encoding(self._path, found, self._encoding)


def marked_encoding(beginning: bytes) -> Encoding | None:
    """What the byte order mark of a file says."""
    if beginning[:2] in (BOM_UTF16_LE, BOM_UTF16_BE):
        return Encoding.utf_16
    return Encoding.utf_8 if beginning.startswith(codecs.BOM_UTF8) else None


def looks_like_cp949(beginning: bytes) -> bool:
    """Whether the first bytes of a file are Korean in CP949, and not UTF-8, whole or with some damaged characters."""
    if _decoded(beginning, Encoding.utf_8) is not None:
        return False
    text = _decoded(beginning, Encoding.cp949) or ""
    return sum(_FIRST <= character <= _LAST for character in text) >= _EVIDENCE and not _mostly_utf8(beginning)


def first_failure(chunks: Iterable[bytes], encoding: Encoding) -> int | None:
    """The first line that is not in an encoding; None if all are."""
    decoder = codecs.getincrementaldecoder(encoding.value)("strict")
    line = 1
    try:
        for chunk in chunks:
            line += decoder.decode(chunk).count("\n")
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        return line + error.object[: error.start].count(b"\n")
    return None


def other_encoding(path: Path, found: Encoding | None, expected: Encoding) -> DataError:
    """The error for a file that is in ``found``."""
    assert found is not None
    name = f"{found.value.upper()}" + (" (EUC-KR)" if found is Encoding.cp949 else "")
    return DataError(
        f"{path} is in {name}",
        got=f"{name}, by its first bytes",
        expected=expected.value.upper(),
        remedy=f"--encoding {found.value}, or --encoding auto if the inputs differ",
    )


def _decoded(content: bytes, encoding: Encoding) -> str | None:
    """The text of bytes, which may end inside a character."""
    try:
        return codecs.getincrementaldecoder(encoding.value)().decode(content)
    except UnicodeDecodeError:
        return None


def _mostly_utf8(content: bytes) -> bool:
    """Whether most bytes that are not ASCII belong to characters of three bytes or more, as in Korean UTF-8.

    Of Korean CP949 few do: those that happen to stand in such an order.
    """
    long = "".join(_LONG.findall(content.decode("utf-8", "ignore")))
    return 2 * len(long.encode("utf-8")) > len(content.translate(None, _ASCII))
