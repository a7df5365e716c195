"""Repair damaged encodings, remove invisible characters, compose to NFC. What looks different stays different.

Compatibility forms (NFKC) are never applied: they would turn ㅋㅋ into conjoining jamo, ① into 1, ㈜ into (주). NFC
composes Hangul that came as separate jamo, and unifies the few hundred characters that Unicode encodes twice, among
them hanja that Korean standards list once for every reading.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, Dropped, StageKind
from megatron_ko.errors import DataError

_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufff9-\ufffb]")
# Joiners (U+200C, U+200D) and variation selectors stay: they make emoji and Indic letters.
_INVISIBLE = re.compile("[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Every character that one of the patterns above begins with.
_ANY = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\u00ad\u1680\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"
    "\ufff9-\ufffb]"
)
# The look-behind lets a long run of spaces be tried once, not from each of its spaces.
_LINE_ENDS = re.compile(r"(?<![ \t])[ \t]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{4,}")


class UnicodeOptions(Section):
    """What is repaired; everything by default."""

    encoding: bool = Field(True, description="Undo UTF-8 that was read as another encoding (ftfy).")
    line_breaks: bool = Field(True, description="Every kind of line break becomes a line feed.")
    controls: bool = Field(True, description="Remove control characters and terminal colours.")
    invisible: bool = Field(
        True, description="Remove zero-width spaces, byte order marks, soft hyphens, direction marks."
    )
    spaces: bool = Field(True, description="No-break, ideographic and other wide or narrow spaces become a space.")
    nfc: bool = Field(True, description="Compose to NFC; the pipeline then keeps every text in NFC to its end.")
    trim: bool = Field(True, description="Remove space at line ends and around the text, and more than 2 blank lines.")
    max_replacement: float | None = Field(
        None, ge=0, description="Drop a text with a larger share of U+FFFD, which stands for a lost character."
    )


class Unicode:
    """The stage."""

    def __init__(self, options: UnicodeOptions) -> None:
        self._options = options
        self._repair = encoding_repair() if options.encoding else None
        steps: list[tuple[str, bool, re.Pattern[str], str]] = [
            ("line_breaks", options.line_breaks, _LINE_BREAKS, "\n"),
            ("terminal_escapes", options.controls, _ESCAPES, ""),
            ("controls", options.controls, _CONTROLS, ""),
            ("invisible", options.invisible, _INVISIBLE, ""),
            ("spaces", options.spaces, _SPACES, " "),
        ]
        self._steps = [(reason, pattern, new) for reason, wanted, pattern, new in steps if wanted]

    def __call__(self, page: Page) -> Changed | Dropped | None:
        """Repair the text."""
        text, counts = page.text, dict[str, int]()
        if text.isascii() and text.isprintable():
            return self._finished(page, text.strip() if self._options.trim else text, counts)
        if self._repair is not None and (repaired := self._repair(text)) != text:
            text, counts["encoding"] = repaired, 1
        if _ANY.search(text):
            for reason, pattern, new in self._steps:
                replaced, number = pattern.subn(new, text)
                if number:
                    text, counts[reason] = replaced, number
        if self._options.nfc and not unicodedata.is_normalized("NFC", text):
            text, counts["nfc"] = unicodedata.normalize("NFC", text), 1
        if self._options.trim:
            text = _trimmed(text)
        limit = self._options.max_replacement
        if limit is not None and text.count("\ufffd") > limit * len(text):
            return Dropped("lost_characters")
        return self._finished(page, text, counts)

    def _finished(self, page: Page, text: str, counts: dict[str, int]) -> Changed | None:
        return None if text == page.text else Changed(text, counts or {"trim": 1})


def _trimmed(text: str) -> str:
    if " \n" in text or "\t\n" in text:
        text = _LINE_ENDS.sub("", text)
    return (_BLANK_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text).strip()


def encoding_repair() -> Callable[[str], str]:
    """ftfy's ``fix_encoding``, line by line as ftfy does it, but only where a line has a character that it looks for.

    Raises:
        DataError: ftfy is not installed.
    """
    try:
        import ftfy
        from ftfy.badness import MOJIBAKE_CATEGORIES as CATEGORIES
    except ImportError:
        raise DataError(
            "ftfy is not installed", got="unicode: {encoding: true}", remedy="pip install ftfy, or encoding: false"
        ) from None
    # Every pattern of ftfy needs at least one of these; quotation marks, dashes and dots alone are never suspicious.
    needed = [name for name in CATEGORIES if name not in ("common", "start_punctuation", "end_punctuation", "law")]
    suspicious = re.compile("[" + "".join(CATEGORIES[name] for name in needed) + "]")
    config = ftfy.TextFixerConfig(explain=False)

    def repair(text: str) -> str:
        return _by_line(text, suspicious, lambda line: ftfy.fix_encoding(line, config))

    return repair


def _by_line(text: str, wanted: "re.Pattern[str]", change: Callable[[str], Any]) -> str:
    """``change`` applied to every line in which the pattern occurs."""
    found = wanted.search(text)
    if found is None:
        return text
    pieces, done = [], 0
    while found is not None:
        start = text.rfind("\n", done, found.start()) + 1 or done
        end = text.find("\n", found.end()) + 1 or len(text)
        pieces += [text[done:start], change(text[start:end])]
        done = end
        found = wanted.search(text, done)
    return "".join([*pieces, text[done:]])


KIND = StageKind(UnicodeOptions, Unicode)
