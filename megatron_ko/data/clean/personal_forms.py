"""The forms of Korean personal data, and what decides whether something of that form is one.

Patterns of numbers are matched against a ``PlainView``, so that they know one kind of dash, digit and space. A number
counts only if its form, the words around it or its check digit say what it is; prices, dates, versions and serial
numbers stay.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megatron_ko.data.clean import personal_words as words
from megatron_ko.data.clean.check_digits import (
    RANDOM_SINCE,
    barcode_ok,
    birth_date,
    business_ok,
    luhn_ok,
    resident_ok,
)

PiiKind = Literal["resident", "passport", "licence", "card", "business", "phone", "account", "ip", "email", "address"]
Match = re.Match[str]


@dataclass(frozen=True)
class Detector:
    """One kind of personal data.

    Attributes:
        pattern: its form.
        is_one: decides from the match and the text around it.
    """

    name: PiiKind
    pattern: "re.Pattern[str]"
    is_one: Callable[[Match], bool]


def _digits(match: Match) -> str:
    return "".join(filter(str.isdigit, match.group()))


def _is_any(match: Match) -> bool:
    return True


def _is_resident(match: Match) -> bool:
    digits, text = _digits(match), words.before(match)
    born = birth_date(digits)
    if born is None:
        return False
    if words.RESIDENT_WORD.search(text):
        return True
    if words.COMPANY_WORD.search(text) or re.search(r"\d\.$", text):  # a company's number, a decimal
        return False
    if resident_ok(digits):
        # Korean goods begin with 880, as do birthdays of 1988.
        return not (match.group().isdigit() and digits.startswith("880") and barcode_ok(digits))
    hyphen = re.fullmatch(r"\d{6} ?- ?\d{7}", match.group()) is not None
    return hyphen and born >= RANDOM_SINCE and not words.SERIAL_WORD.search(text) and not words.coded(match)


def _is_passport(match: Match) -> bool:
    return words.PASSPORT_WORD.search(words.before(match)) is not None


def _is_licence(match: Match) -> bool:
    if words.LICENCE_WORD.search(words.before(match)):
        return True
    return not (match.group().isdigit() or words.coded(match))


def _is_card(match: Match) -> bool:
    digits = _digits(match)
    if not luhn_ok(digits) or _ISSUER.fullmatch(digits) is None or len(set(digits)) < 2:
        return False
    if words.CARD_WORD.search(words.before(match)) or not match.group().isdigit():
        return True
    return len(digits) in (15, 16) and not words.coded(match)


def _is_business(match: Match) -> bool:
    if not business_ok(_digits(match)):
        return False
    if re.fullmatch(r"\d{3} ?- ?\d{2} ?- ?\d{5}", match.group()) and not words.coded(match):
        return True
    return words.BUSINESS_WORD.search(words.before(match)) is not None


def _is_mobile(match: Match) -> bool:
    digits, groups = _digits(match), re.findall(r"\d+", match.group())
    if words.summed(match) or len(set(digits)) < 3:
        return False
    if len(groups) > 1:
        return min(map(len, groups)) > 1  # lists of short numbers have pieces of one digit
    if digits.startswith("010") and len(digits) != len("01012345678"):
        return False
    serial = words.SERIAL_WORD.search(words.before(match))
    return words.called(match) or not (serial or words.coded(match) or words.counted(match))


def _is_land_line(match: Match) -> bool:
    if words.called(match):
        return True
    shown, text = match.group(), words.before(match)
    if shown.isdigit() or words.coded(match) or words.counted(match) or words.SERIAL_WORD.search(text):
        return False
    # A row of a table has more numbers.
    row = re.search(r"\d[ .,/~]$", text) or re.match(r"[ .,/~]\d", words.after(match))
    return "-" in shown or ")" in shown or row is None


def _is_representative(match: Match) -> bool:
    if words.called(match):
        return True
    first, last = int(match.group()[:4]), int(match.group()[-4:])
    if "-" not in match.group() or first < last <= 2100:  # from a year to a year
        return False
    return not (words.coded(match) or words.counted(match) or words.SERIAL_WORD.search(words.before(match)))


def _is_account(match: Match) -> bool:
    digits, shown = _digits(match), match.group()
    if not 10 <= len(digits) <= 16 or words.counted(match) or words.summed(match) or _DAY.match(shown):
        return False
    return words.banked(match) or (_KNOWN_ACCOUNT.fullmatch(shown) is not None and not words.coded(match))


def _is_public(match: Match) -> bool:
    if len(match.group()) == len("1.2.3.4"):
        return False  # far more often a section number or a version
    text = words.before(match)
    if re.search(r"\w$|\w[.-]$", text, re.ASCII) or ("::" in match.group() and text.endswith(":")):
        return False  # a part of something longer
    if words.VERSION_WORD.search(text) or words.VERSION_AFTER.match(words.after(match)):
        return False
    if re.fullmatch(r"(?:\d\d?\.){3}\d\d?", match.group()) and not words.ADDRESS_WORD.search(text + words.after(match)):
        return False  # few addresses have only small numbers, most versions do
    try:
        return ipaddress.ip_address(match.group()).is_global
    except ValueError:
        return False


def _is_spelled(match: Match) -> bool:
    """At least one character is no digit, and it is more than a row of o and l, or of zeros."""
    shown = re.findall(r"[^\W_]", match.group())
    numerals = re.findall(r"[\d①-⑨공영일이삼사오육륙칠팔구一二三四五六七八九]", match.group())
    return not all(map(str.isdecimal, shown)) and len(numerals) > 7 and len(set(numerals[3:])) > 2


# First digits of cards that are in use: Visa, Mastercard, JCB, Discover, UnionPay, Korean domestic; Amex; Diners; short
# and long numbers of Visa and UnionPay.
_ISSUER = re.compile(
    r"(?:4\d|5[1-5]|2[2-7]|35|6[0245]|9\d)\d{14}|3[47]\d{13}|3[0689]\d{12}|4\d{12}|(?:4\d|6[02])\d{15,17}"
)
_DAY = re.compile(r"(?:19|20)\d\d[-./ ]?(?:0[1-9]|1[0-2])[-./ ]?(?:0[1-9]|[12]\d|3[01])(?:\D|\d{4}|\d{6}|$)")
# Of Kakao, Nonghyup, Kookmin, IBK, Shinhan and Woori: forms that are hardly used for anything else.
_KNOWN_ACCOUNT = re.compile(
    r"3333-\d\d-\d{7}|3\d\d-\d{4}-\d{4}-\d\d|\d{6}-\d\d-\d{6}|\d{3}-\d{6}-\d\d-\d{3}|110-\d{3}-\d{6}|1002-\d{3}-\d{6}"
)
# Between the parts of a number: nothing, a space, or a mark with or without spaces; what people say for a hyphen.
_SEP = r" ?[)\]]?[-.·/~_*|]? ?"
_SPOKEN = rf"(?:{_SEP}|[:,]| ?(?:다시|대시|하이픈|에) ?)"
_AREA = r"(?:02|0(?:3[1-3]|4[1-4]|5[1-5]|6[1-4])|070|080|050\d?|0303)"
_REPRESENTATIVE = (
    r"(?:15(?:22|33|44|66|77|88|99)|16(?:00|11|22|33|44|55|6[01668]|70|77|80|88|9[89])|"
    r"18(?:00|11|22|33|44|51|55|66|7[07]|88|99))"
)
_ABROAD = r"(?:\(?(?:\+|00) ?82\)?|(?<![\d.])82(?=[- ]))"


def _number(name: PiiKind, pattern: str, is_one: Callable[[Match], bool]) -> Detector:
    return Detector(name, re.compile(rf"(?<!\d)(?<!\d-)(?:{pattern})(?!-?\d)(?!\.\d)", re.ASCII), is_one)


# In this order: what one detector has found, the later ones do not see.
NUMBERS = (
    _number(
        "resident", rf"\d\d([-./ ]?)\d\d\1\d\d(?: ?[(|]|,? ?(?:뒷자리|뒤)[는:]? ?|{_SEP})?\d[- ]?\d{{6}}", _is_resident
    ),
    _number("licence", r"(?:1[1-9]|2[0-68])([- ]?)\d\d\1\d{6}\1\d\d", _is_licence),
    _number("card", rf"\d{{4}}(?:{_SEP}\d{{4}}){{3}}(?:{_SEP}\d{{3}})?", _is_card),
    _number("card", rf"\d{{4}}{_SEP}\d{{6}}{_SEP}\d{{4,5}}|\d{{13,19}}", _is_card),
    _number(
        "phone",
        rf"{_ABROAD}{_SEP}(?:\(0\)|0)?(?:1[016789]|2|[3-6][1-5]|[57]0\d?|80){_SEP}\d{{3,4}}{_SEP}\d{{4}}",
        _is_any,
    ),
    _number("phone", rf"[(\[]?01[016789](?:{_SPOKEN}\d){{7,8}}", _is_mobile),
    _number("business", rf"\d{{3}}{_SEP}\d\d{_SEP}\d{{5}}", _is_business),
    _number("phone", rf"[(\[]?{_AREA}{_SEP}\d{{3,4}}{_SEP}\d{{4}}", _is_land_line),
    _number("phone", rf"{_REPRESENTATIVE}{_SEP}\d{{4}}", _is_representative),
    _number("account", r"\d{2,6}[-. ]\d{2,6}[-. ]\d{2,8}(?:[-. ]\d{1,5})?|\d{10,14}", _is_account),
)
IP_ADDRESSES = (
    Detector("ip", re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII), _is_public),
    Detector("ip", re.compile(r"[23][0-9a-fA-F]{3}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:])", re.ASCII), _is_public),
)


# 010 in letters, or with letters among its digits: 공일공 일이삼사 오육칠팔, O1O-1234-5678, 010-12삼사-5678.
_DIGIT = "[0-9공영일이삼사오육륙칠팔구〇零一二三四五六七八九⓪①②③④⑤⑥⑦⑧⑨OolI]"
_ZERO = "[0공영ㅇoO〇零⓪]"
_SAID = r"(?: ?(?:[-–—ㅡ.·/~_]|다시|에)? ?)"
SPELLED = Detector(
    "phone",
    re.compile(
        # The look-behind comes second, so that the search can skip to the first character.
        rf"{_ZERO}(?<!\d.)(?<![A-Za-z][oO])[ -]?[1일lI一①][ -]?{_ZERO}(?:{_SAID}{_DIGIT}){{8}}(?![0-9A-Za-z])"
    ),
    _is_spelled,
)
PASSPORT = Detector(
    "passport",
    re.compile(r"(?<![A-Za-z0-9])[A-Z](?:[A-Z]?[ -]?\d{7,8}|[ -]?\d{3}[A-Z]\d{4})(?![A-Za-z0-9])", re.I),
    _is_passport,
)
# Before 1998 with the name of the region.
OLD_LICENCE = Detector(
    "licence",
    re.compile(
        r"(?:서울|부산|대구|인천|광주|대전|울산|경기|강원|충북|충남|전북|전남|경북|경남|제주)"
        r"[- ]?(?:\d\d[- ])?\d\d[- ]\d{6}[- ]\d\d(?!\d)"
    ),
    _is_any,
)

_LABELS = r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,5}[a-z]{2,24}"
# From its sign on; the name before it is looked for backwards, since every word could begin one. Not
# git@github.com:name/repository
EMAIL = re.compile(rf"@(?i:{_LABELS})(?![\w-]|\.\w|:[\w/~])", re.ASCII)
MAILBOX = re.compile(
    r"(?<![\w%])(?<![\w.+-]/)(?<!//)(?<!\w[.+-])[a-z0-9](?:[a-z0-9._%+-]{0,62}[a-z0-9_+-])? ?$", re.ASCII | re.I
)
# Written so that programs do not find it; without a sign that nothing else has, only at a well-known provider.
_PROVIDER = (
    r"(?:naver|gmail|daum|hanmail|nate|kakao|hotmail|outlook|yahoo|icloud|네이버|지메일|다음|한메일|네이트|핫메일)"
)
# No flag for upper and lower case on what it begins with: the search could not skip to the first character then.
_SIGN = r"(?:골뱅이|[(\[<{](?:[aA][tT]|골뱅이|@)[)\]>}]) ?"
_DOT = r" ?(?:\.|[(\[]?(?:dot|닷|점)[)\]]?) ?"
SPACED_EMAIL = re.compile(
    rf"(?:{_SIGN}|@ ?)(?i:{_PROVIDER}{_DOT}(?:com|net|co{_DOT}kr|컴|넷|코엠)(?![a-z0-9]))"
    rf"|{_SIGN}(?i:{_PROVIDER}(?![a-z0-9])|{_LABELS}(?![a-z0-9-]))"
)
# Without its end. 다음 is also "next".
SHORT_EMAIL = re.compile(rf"@(?!다음)(?i:{_PROVIDER})(?![a-zA-Z0-9.])")

# Down to the building: a town or district, then a road and a number, or a quarter and the number of a plot.
_BUILDING = r"(?:,? ?[가-힣A-Za-z0-9]{1,15}(?:아파트|빌딩|빌라|오피스텔|타워|맨션|주택|상가))?"
_BUILDING += r"(?:,? ?\d{1,4}동)?(?:,? ?\d{1,4}호)?"
ADDRESS = Detector(
    "address",
    re.compile(
        r"(?<![가-힣])(?:[가-힣]{2,4}(?:특별시|광역시|특별자치시|특별자치도|도) |[가-힣]{2} )?"
        r"(?:[가-힣]{1,6}[시군구] ){1,3}"
        r"(?:(?:[가-힣0-9]{1,8}[읍면] )?[가-힣0-9]{1,12}(?:로|길) ?(?:\d{1,4}번?길 ?)?\d{1,4}(?:-\d{1,4})?"
        r"|(?:[가-힣0-9]{1,8}[읍면] )?[가-힣0-9]{1,8}[동리가] (?:산 ?)?\d{1,4}(?:-\d{1,4})?(?:번지)?)(?!\d)"
        rf"{_BUILDING}"
    ),
    _is_any,
)
