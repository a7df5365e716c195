"""Korean personal data: resident numbers, cards, business numbers, phones, accounts, e-mail and IP addresses.

A number counts only if its form, the words before it or its check digit say what it is, so that prices, dates and
serial numbers stay. A resident registration number has 6 and 7 digits with a possible birth date, and
- a right check digit; or
- a birth date since 5 October 2020 and a hyphen between the parts: numbers given since then end in random digits; or
- a word like 주민등록번호 before it, whatever the check digit: numbers that were changed since then are random as well.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.check_digits import RANDOM_SINCE, birth_date, business_ok, luhn_ok, resident_ok
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, Dropped, StageKind

PiiKind = Literal["resident", "card", "business", "phone", "account", "ip", "email"]
Action = Literal["mask", "drop", "keep"]

MASKS: dict[PiiKind, str] = {
    "resident": "[주민등록번호]",
    "card": "[카드번호]",
    "business": "[사업자등록번호]",
    "phone": "[전화번호]",
    "account": "[계좌번호]",
    "ip": "[IP주소]",
    "email": "[이메일]",
}

# A stretch of text that may hold a number. Most detectors look only at these, and few texts have any.
_STRETCH = re.compile(r"[+(]?\d[\d(). –−-]{5,}\d")
# Of any number but an IP address: 02-123-4567.
_FEWEST_DIGITS = 9
_CONTEXT = 24

_RESIDENT_WORD = re.compile(r"(?:주민|외국인|거소|등록\s?번호|resident|RRN)[^\d\n]*$", re.I)
_BUSINESS_WORD = re.compile(r"사업자[^\d\n]*$")
_ACCOUNT_WORD = re.compile(
    r"(?:은행|뱅크|계좌|국민|신한|우리|하나|농협|기업|수협|신협|씨티|카카오|토스|새마을금고|우체국|입금|송금)[^\d\n]{0,12}$"
)
_VERSION_WORD = re.compile(r"(?:버전|version|ver\.?|[vV/])\s*$", re.I)
# First digits of cards that are in use: Visa, Mastercard, Amex, JCB, Diners, Discover, UnionPay, Korean domestic.
_ISSUER = re.compile(r"4|5[1-5]|2[2-7]|3[4-9]|6[0245]|9[0-9]")


@dataclass(frozen=True)
class _Detector:
    """One kind of number.

    Attributes:
        pattern: its form.
        is_one: decides from the match and the text before it.
    """

    name: PiiKind
    pattern: "re.Pattern[str]"
    is_one: Callable[["re.Match[str]", str], bool]


def _digits(match: "re.Match[str]") -> str:
    return "".join(filter(str.isdigit, match.group()))


def _is_resident(match: "re.Match[str]", before: str) -> bool:
    digits = _digits(match)
    born = birth_date(digits)
    if born is None:
        return False
    split = not match.group().isdigit()
    return resident_ok(digits) or (split and born >= RANDOM_SINCE) or _RESIDENT_WORD.search(before) is not None


def _is_card(match: "re.Match[str]", before: str) -> bool:
    digits = _digits(match)
    return luhn_ok(digits) and _ISSUER.match(digits) is not None


def _is_business(match: "re.Match[str]", before: str) -> bool:
    split = not match.group().isdigit()
    return business_ok(_digits(match)) and (split or _BUSINESS_WORD.search(before) is not None)


def _is_account(match: "re.Match[str]", before: str) -> bool:
    return _ACCOUNT_WORD.search(before) is not None and 10 <= len(_digits(match)) <= 16


def _is_any(match: "re.Match[str]", before: str) -> bool:
    return True


def _is_public(match: "re.Match[str]", before: str) -> bool:
    if len(match.group()) == len("1.2.3.4"):
        return False  # far more often a section number or a version
    try:
        return ipaddress.ip_address(match.group()).is_global and _VERSION_WORD.search(before) is None
    except ValueError:
        return False


def _number(pattern: str) -> "re.Pattern[str]":
    return re.compile(rf"(?<![\d.-])(?:{pattern})(?![\d-])", re.ASCII)


# In this order: what one detector has found, the later ones do not see.
_NUMBERS = (
    _Detector("resident", _number(r"\d{6}(?:\s?[-–−]\s?)?[0-9]\d{6}"), _is_resident),
    _Detector("card", _number(r"(\d{4})([ -])\d{4}\2\d{4}\2\d{4}|\d{4}([ -])\d{6}\3\d{5}|\d{15,16}"), _is_card),
    _Detector("business", _number(r"\d{3}-\d{2}-\d{5}|\d{10}"), _is_business),
    _Detector("account", _number(r"\d{2,6}-\d{2,6}-\d{2,8}(?:-\d{1,3})?|\d{10,14}"), _is_account),
    _Detector(
        "phone",
        _number(
            r"(?:\+82|\(\+82\)|0082)[ -]?(?:\(0\)|0)?(?:1[016789]|2|[3-6][1-5])[ -]?\d{3,4}[ -]?\d{4}|"
            r"010([ .-]?)\d{4}\1\d{4}|01[16789]([ .-]?)\d{3,4}\2\d{4}|"
            r"(?:02|0[3-6][1-5]|070|050\d?)([.-])\d{3,4}\3\d{4}|"
            r"\(?(?:02|0[3-6][1-5]|070|050\d?)\)\s?\d{3,4}-\d{4}"
        ),
        _is_any,
    ),
    _Detector("ip", re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII), _is_public),
)
_IP6 = _Detector(
    "ip", re.compile(r"(?<![\w:.])[23][0-9a-f]{3}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.ASCII | re.I), _is_public
)
_EMAIL = _Detector(
    "email",
    re.compile(
        r"(?<![\w.+%/-])[a-z0-9](?:[a-z0-9._%+-]{0,62}[a-z0-9_+-])?"
        # Not git@github.com:name/repository
        r"@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,5}[a-z]{2,24}(?![\w-]|\.\w|:[\w/~])",
        re.ASCII | re.I,
    ),
    _is_any,
)


class PersonalOptions(Section):
    """What happens to a text with such data: mask it, drop the document, or keep it as it is."""

    resident: Action = Field("mask", description="Resident and foreigner registration numbers.")
    card: Action = Field("mask", description="Card numbers (Luhn).")
    business: Action = Field("mask", description="Business registration numbers (check digit).")
    phone: Action = Field("mask", description="Mobile and area-code phone numbers; not 1588 and the like.")
    account: Action = Field("mask", description="Bank accounts: only behind the name of a bank or a word like 계좌.")
    ip: Action = Field("mask", description="Public IP addresses.")
    email: Action = Field("mask", description="E-mail addresses.")
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
        found = [finding for finding in find_personal(text) if self._actions[finding.name] != "keep"]
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


def find_personal(text: str) -> list[Finding]:
    """All personal data of a text, in order and without overlap."""
    found: list[Finding] = []
    # First, because the name in an address can be a phone number.
    if "@" in text:
        _add(found, _matches(_EMAIL, text, 0, len(text)))
    for stretch in _STRETCH.finditer(text):
        shown = stretch.group()
        if sum(map(str.isdigit, shown)) < _FEWEST_DIGITS and shown.count(".") < 3:
            continue
        for detector in _NUMBERS:
            # A little further, so that what follows a number is seen.
            _add(found, _matches(detector, text, stretch.start(), stretch.end() + 2))
    if ":" in text:
        _add(found, _matches(_IP6, text, 0, len(text)))
    return sorted(found, key=lambda finding: finding.start)


def redacted(text: str) -> str:
    """The text with the digits and letters of personal data replaced, so that its form can be seen in a report."""
    pieces, done = [], 0
    for finding in find_personal(text):
        data = re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", text[finding.start : finding.end]))
        pieces += [text[done : finding.start], data]
        done = finding.end
    return "".join([*pieces, text[done:]])


def _matches(detector: _Detector, text: str, start: int, end: int) -> Iterator[Finding]:
    for match in detector.pattern.finditer(text, start, end):
        before = text[max(0, match.start() - _CONTEXT) : match.start()]
        if detector.is_one(match, before):
            yield Finding(detector.name, *match.span())


def _add(found: list[Finding], new: Iterator[Finding]) -> None:
    for finding in new:
        if all(finding.end <= other.start or other.end <= finding.start for other in found):
            found.append(finding)


KIND = StageKind(PersonalOptions, Personal)
