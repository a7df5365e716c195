"""A stretch of text in plain characters, in which a number has few ways of being written, and the way back.

Full-width characters become ASCII, every dash a hyphen, every middle dot the same one, white space one space;
characters without width go, and so do repeated separators and those between single digits. Then ０１０―１２３４,
010ㅡ1234ㅡ5678 and 0 1 0 1 2 3 4 5 6 7 8 need no patterns of their own. The text itself is not changed.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass

# Hangul EU, the katakana prolonged sound mark and box-drawing lines are typed for a dash.
_DASHES = "‐‑‒–—―⁃−﹘﹣－─━ㅡーｰ᠆"
_DOTS = "·•∙‧・･ㆍᆞ⋅"
_BRACKETS = {"〔": "[", "〕": "]", "【": "[", "】": "]", "❨": "(", "❩": ")"}
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_ANY_FULL_WIDTH = re.compile("[\uff01-\uff5e]")
_TABLE = (
    _FULL_WIDTH
    | dict.fromkeys(map(ord, _DASHES), ord("-"))
    | dict.fromkeys(map(ord, _DOTS), ord("·"))
    | {ord(old): ord(new) for old, new in _BRACKETS.items()}
    | {ord("〜"): ord("~"), ord("～"): ord("~"), ord("∼"): ord("~"), ord("。"): ord(".")}
)
# Also what is left of an emoji of a digit.
_WITHOUT_WIDTH = r"[\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff\ufe0e\ufe0f\u20e3]"
_RUN = r"[^\S\n]{2,}|--+|\.\.+|··+|__+|\*\*+|~~+"
_GAP = r"(?: ?[-.·_~*] ?| )"
_LONE_DIGITS = re.compile(rf"(?<!\d)\d(?:{_GAP}\d(?!\d)){{8,}}", re.ASCII)
_GAPS = re.compile(_GAP)
_ODD = re.compile(rf"[^ -~\n가-힣]|{_RUN}")
_CHANGE = re.compile(rf"(?P<gone>{_WITHOUT_WIDTH}+)|(?P<run>{_RUN})")


@dataclass(frozen=True)
class PlainView:
    """Text in plain characters.

    Attributes:
        text: what patterns are matched against.
        origins: where each character was in the original, and where the last one ended.
    """

    text: str
    origins: "list[int] | range"

    def back(self, start: int, end: int) -> tuple[int, int]:
        """The part of the original that [start, end) of the view stands for."""
        return self.origins[start], self.origins[end - 1] + 1

    def index(self, origin: int) -> int:
        """The first place in the view that is not before a place in the original."""
        return bisect_left(self.origins, origin, hi=len(self.text))


def full_width_to_ascii(text: str) -> str:
    """The same number of characters, letters and signs that are as wide as Hangul in ASCII."""
    return text.translate(_FULL_WIDTH) if _ANY_FULL_WIDTH.search(text) else text


def plain_view(text: str, start: int, end: int) -> PlainView:
    """The view of [start, end) of a text."""
    piece = text[start:end]
    view = PlainView(piece, range(start, end + 1))
    if _ODD.search(piece):
        view = _without(PlainView(_translated(piece), view.origins), _CHANGE)
    # The second search sees what the first one left: 0 - 1 - 0.
    if _LONE_DIGITS.search(view.text):
        view = _joined(view)
    return view


def _translated(piece: str) -> str:
    """One character for each: other digits, spaces and full-width characters in ASCII."""
    return "".join(map(_plain, piece.translate(_TABLE)))


def _plain(character: str) -> str:
    if character.isascii():
        return " " if character.isspace() and character != "\n" else character
    if character.isdecimal():
        return str(int(character))
    return " " if character.isspace() else character


def _without(view: PlainView, change: "re.Pattern[str]") -> PlainView:
    """What has no width goes, and of a run of separators one stays."""
    pieces: list[str] = []
    origins: list[int] = []
    done = 0
    for match in change.finditer(view.text):
        keep = match.start() + (match["run"] is not None)
        pieces.append(view.text[done:keep])
        origins += view.origins[done:keep]
        done = match.end()
    pieces.append(view.text[done:])
    origins += view.origins[done:]
    shorter = PlainView("".join(pieces), origins)
    # Characters without width may have kept spaces apart.
    return shorter if len(shorter.text) == len(view.text) else _without(shorter, change)


def _joined(view: PlainView) -> PlainView:
    """Digits that stand one by one become one number."""
    pieces: list[str] = []
    origins: list[int] = []
    done = 0
    for row in _LONE_DIGITS.finditer(view.text):
        for gap in _GAPS.finditer(row.group()):
            first, last = row.start() + gap.start(), row.start() + gap.end()
            pieces.append(view.text[done:first])
            origins += view.origins[done:first]
            done = last
    pieces.append(view.text[done:])
    origins += view.origins[done:]
    return PlainView("".join(pieces), origins)
