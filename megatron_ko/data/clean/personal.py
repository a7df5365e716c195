"""Korean personal data: numbers of people, cards, firms, phones and accounts, e-mail, IP addresses, addresses.

``personal_forms`` says what each looks like, ``personal_words`` what the words around it tell. A resident registration
number has 6 and 7 digits with a possible birth date, and
- a right check digit; or
- a birth date since 5 October 2020 and a hyphen between the parts: numbers given since then end in random digits; or
- a word like 주민등록번호 before it, whatever the check digit: numbers that were changed since then are random as well.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.personal_forms import (
    ADDRESS,
    EMAIL,
    IP_ADDRESSES,
    MAILBOX,
    NUMBERS,
    OLD_LICENCE,
    PASSPORT,
    SHORT_EMAIL,
    SPACED_EMAIL,
    SPELLED,
    Detector,
    PiiKind,
)
from megatron_ko.data.clean.plain_view import full_width_to_ascii, plain_view
from megatron_ko.data.clean.stage import Changed, Dropped, StageKind

Action = Literal["mask", "drop", "keep"]

MASKS: dict[PiiKind, str] = {
    "resident": "[주민등록번호]",
    "passport": "[여권번호]",
    "licence": "[운전면허번호]",
    "card": "[카드번호]",
    "business": "[사업자등록번호]",
    "phone": "[전화번호]",
    "account": "[계좌번호]",
    "ip": "[IP주소]",
    "email": "[이메일]",
    "address": "[주소]",
}

# A stretch of text that may hold a number: at least so many digits, with little between them. Most detectors look only
# at these, and few texts have any.
_STRETCH = re.compile(r"\d(?:(?:[^\w\n]|[_ㅡー]|다시|대시|하이픈|에|뒷자리는?|뒤){0,5}\d){7,}")
# What follows the last digit in an emoji of it.
_KEYCAP = ("\ufe0f", "\u20e3")
_CONTEXT = 32
_BEHIND = 24
# Longer than the name in any address.
_MAILBOX = 68
# A text without any of these holds nothing.
_DIGIT = re.compile(r"[\d⓪]")
_SPELLED_OUT = ("공일", "공 일", "영일영")
_EMAIL_SIGNS = ("@", "＠", "골뱅이", "(at)", "[at]")
_PASSPORT_WORDS = ("여권", "assport", "PASSPORT")


class PersonalOptions(Section):
    """What happens to a text with such data: mask it, drop the document, or keep it as it is."""

    resident: Action = Field("mask", description="Resident and foreigner registration numbers.")
    passport: Action = Field("mask", description="Passport numbers: only behind a word like 여권.")
    licence: Action = Field("mask", description="Numbers of driving licences.")
    card: Action = Field("mask", description="Card numbers (Luhn).")
    business: Action = Field("mask", description="Business registration numbers (check digit).")
    phone: Action = Field(
        "mask", description="Phone numbers: mobile, area codes, 070, 080, 050, 1588 and the like, +82."
    )
    account: Action = Field(
        "mask",
        description="Bank accounts: near the name of a bank or a word like 계좌, and forms that only banks have.",
    )
    ip: Action = Field("mask", description="Public IP addresses.")
    email: Action = Field("mask", description="E-mail addresses, also with 골뱅이 for the sign.")
    address: Action = Field("keep", description="Postal addresses down to the building.")
    masks: dict[PiiKind, str] = Field({}, description="What stands for the data; default: " + " ".join(MASKS.values()))


@dataclass(frozen=True)
class Finding:
    """Personal data in a text, at [start, end)."""

    name: PiiKind
    start: int
    end: int


class Personal:
    """The stage."""

    def __init__(self, options: PersonalOptions) -> None:
        self._actions: dict[PiiKind, Action] = {name: getattr(options, name) for name in MASKS}
        self._masks = {**MASKS, **options.masks}

    def __call__(self, page: Page) -> Changed | Dropped | None:
        """Mask, or drop the document for the first kind that asks for it."""
        text = page.text
        found = find_personal(text, addresses=self._actions["address"] != "keep")
        found = [finding for finding in found if self._actions[finding.name] != "keep"]
        if not found:
            return None
        for finding in found:
            if self._actions[finding.name] == "drop":
                return Dropped(finding.name)
        pieces, done = [], 0
        for finding in found:
            pieces += [text[done : finding.start], self._masks[finding.name]]
            done = finding.end
        return Changed("".join([*pieces, text[done:]]), Counter(finding.name for finding in found))


def find_personal(text: str, *, addresses: bool = False) -> list[Finding]:
    """All personal data of a text, in order and without overlap; postal addresses only if they are asked for."""
    found: list[Finding] = []
    signed = any(map(text.__contains__, _EMAIL_SIGNS))
    if signed or _DIGIT.search(text) or any(map(text.__contains__, _SPELLED_OUT)):
        # First, because the name in an address can be a phone number.
        if signed:
            _add(found, _emails(full_width_to_ascii(text)))
        if any(map(text.__contains__, _PASSPORT_WORDS)):
            _add(found, _matches(PASSPORT, full_width_to_ascii(text)))
        for stretch in _STRETCH.finditer(text):
            _add(found, _numbers(text, stretch.start(), stretch.end()))
        _add(found, _matches(SPELLED, text))
        for sign, detector in zip(".:", IP_ADDRESSES, strict=True):
            if text.count(sign) > 1:
                _add(found, _matches(detector, text))
    if addresses:
        _add(found, _matches(ADDRESS, text))
    return sorted(found, key=lambda finding: finding.start) if found else found


def redacted(text: str) -> str:
    """The text with the digits and letters of personal data replaced, so that its form can be seen in a report."""
    pieces, done = [], 0
    for finding in find_personal(text):
        data = re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", text[finding.start : finding.end]))
        pieces += [text[done : finding.start], data]
        done = finding.end
    return "".join([*pieces, text[done:]])


def _emails(text: str) -> Iterator[Finding]:
    """Signs like @ with a domain behind, and the name before them."""
    for pattern in (EMAIL, SPACED_EMAIL, SHORT_EMAIL):
        for sign in pattern.finditer(text):
            mailbox = MAILBOX.search(text[max(0, sign.start() - _MAILBOX) : sign.start()])
            if mailbox is not None and (pattern is SPACED_EMAIL or not mailbox.group().endswith(" ")):
                yield Finding("email", sign.start() - len(mailbox.group()), sign.end())


def _numbers(text: str, start: int, end: int) -> Iterator[Finding]:
    """Numbers that begin in a stretch of the text, or a few characters before it: +82, (02)."""
    view = plain_view(text, max(0, start - _CONTEXT), end + _BEHIND)
    first, last = view.index(start), view.index(end)
    for detector in (OLD_LICENCE, *NUMBERS):
        for match in detector.pattern.finditer(view.text, max(0, first - 6)):
            if first < match.end() and match.start() < last and detector.is_one(match):
                begin, behind = view.back(*_without_bracket(match))
                while text[behind : behind + 1] in _KEYCAP:
                    behind += 1
                yield Finding(detector.name, begin, behind)


def _without_bracket(match: "re.Match[str]") -> tuple[int, int]:
    """The match without an opening bracket that closes only behind it: (010-1234-5678)."""
    shown = match.group()
    alone = shown[0] in "([" and sum(map(shown.count, "([")) > sum(map(shown.count, ")]"))
    return match.start() + alone, match.end()


def _matches(detector: Detector, text: str) -> Iterator[Finding]:
    for match in detector.pattern.finditer(text):
        if detector.is_one(match):
            yield Finding(detector.name, *match.span())


def _add(found: list[Finding], new: Iterator[Finding]) -> None:
    for finding in new:
        if all(finding.end <= other.start or other.end <= finding.start for other in found):
            found.append(finding)


KIND = StageKind(PersonalOptions, Personal)
