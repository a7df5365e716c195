"""Valid personal numbers in random ways of writing inside Korean text, and harmless numbers, for benchmark and tests.

The check digits are computed here once more, not by the package. All numbers are random.
"""

import random
from collections.abc import Callable

DASHES = "-‐‑–—−ㅡー－"
SEPARATORS = [*DASHES, ".", " ", "  ", "\u00a0", "\u3000", "\u200b-", "·", "~", "/", "--", *(f" {d} " for d in DASHES)]
BEFORE = [
    "",
    "번호는 ",
    "입니다.",
    "(",
    "「",
    "제 번호",
    ":",
    "그리고 ",
    "확인,",
    "\n",
    "“",
    "그래서 나는 ",
    "-> ",
    "* ",
]
AFTER = ["", " 입니다", "입니다", ".", ",", ")", "」", "이에요", "\n", " 끝", "!", "로 주세요", "”", " 그리고"]
AREAS = ["02", "031", "032", "033", "041", "042", "043", "044", "051", "052", "053", "054", "055", "061", "062", "064"]
REPRESENTATIVE = [
    "1522",
    "1544",
    "1566",
    "1577",
    "1588",
    "1599",
    "1600",
    "1644",
    "1661",
    "1670",
    "1688",
    "1800",
    "1899",
]
# A context word, and how the bank divides its numbers.
BANKS = {
    "국민은행": (6, 2, 6),
    "신한은행": (3, 3, 6),
    "우리은행": (4, 3, 6),
    "농협": (3, 4, 4, 2),
    "기업은행": (3, 6, 2, 3),
    "카카오뱅크": (4, 2, 7),
    "하나은행": (3, 6, 5),
}


def plant(kind: str, draw: random.Random) -> tuple[str, str]:
    """A text and the personal data in it."""
    data, word = KINDS[kind](draw)
    before = draw.choice(BEFORE) if not word else draw.choice([f"{word} ", f"{word}: ", f"{word}", f"저의 {word}는 "])
    return f"{before}{data}{draw.choice(AFTER)}", data


def resident(draw: random.Random) -> tuple[str, str]:
    """Citizens and foreigners, born before the check digit was given up, or with a hyphen since then."""
    random_digits = draw.random() < 0.2
    year = draw.randint(2021, 2026) if random_digits else draw.randint(1930, 2019)
    seventh = draw.choice("1256" if year < 2000 else "3478")
    body = f"{year % 100:02}{draw.randint(1, 12):02}{draw.randint(1, 28):02}{seventh}{draw.randint(0, 99999):05}"
    total = sum(int(digit) * weight for digit, weight in zip(body, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=True))
    last = (11 - total % 11) % 10 if seventh in "1234" else (13 - total % 11) % 10
    if random_digits:
        return _joined([body[:6], f"{body[6:]}{draw.randint(0, 9)}"], draw.choice(DASHES), draw), ""
    number = f"{body}{last}"
    if number.startswith("880") and draw.random() < 0.5:  # like the bar code of Korean goods: hyphen only
        return _joined([number[:6], number[6:]], "-", draw), ""
    word = draw.choice(["", "", "주민번호", "주민등록번호", "외국인등록번호"])
    separator = draw.choice([*SEPARATORS, "" if word or not number.startswith("880") else "-"])
    return _joined([number[:6], number[6:]], separator, draw), word


def card(draw: random.Random) -> tuple[str, str]:
    """Visa, Mastercard, JCB, UnionPay, domestic cards in fours; Amex in 4, 6, 5."""
    amex = draw.random() < 0.15
    body = draw.choice(["34", "37"] if amex else ["4", "51", "55", "2221", "3530", "62", "94", "9"])
    length = 14 if amex else 15
    body += "".join(draw.choices("0123456789", k=length - len(body)))
    doubled = [int(digit) * (2 if i % 2 == 0 else 1) for i, digit in enumerate(reversed(body))]
    number = f"{body}{-sum(value // 10 + value % 10 for value in doubled) % 10}"
    sizes = (4, 6, 5) if amex else (4, 4, 4, 4)
    return _joined(_parts(number, sizes), draw.choice([*SEPARATORS, ""]), draw), draw.choice(["", "카드", "카드번호"])


def business(draw: random.Random) -> tuple[str, str]:
    """000-00-00000 with its check digit; other separators behind a word."""
    body = f"{draw.randint(101, 899)}{draw.randint(1, 99):02}{draw.randint(0, 9999):04}"
    total = sum(int(digit) * weight for digit, weight in zip(body, (1, 3, 7, 1, 3, 7, 1, 3, 5), strict=True))
    number = f"{body}{-(total + int(body[8]) * 5 // 10) % 10}"
    word = draw.choice(["", "사업자번호", "사업자등록번호"])
    separator = draw.choice([*SEPARATORS, ""] if word else [*DASHES, *(f" {d} " for d in DASHES)])
    return _joined(_parts(number, (3, 2, 5)), separator, draw), word


def phone(draw: random.Random) -> tuple[str, str]:
    """Mobile phones, land lines, 070, 080, 050, representative numbers, +82."""
    form = draw.randrange(5)
    four = [f"{draw.randint(2000, 9999)}", f"{draw.randint(0, 9999):04}"]
    if form <= 1:
        return _joined([draw.choice(["010"] * 8 + ["011", "016"]), *four], draw.choice([*SEPARATORS, ""]), draw), ""
    if form == 2:
        area = draw.choice([*AREAS, "070", "080", "0505"])
        bracketed = draw.choice([f"({area})", f"{area})", f"({area}) "])
        separator = draw.choice([*DASHES, *(f" {d} " for d in DASHES), "."])
        number = f"{bracketed}{separator.join(four)}" if draw.random() < 0.3 else separator.join([area, *four])
        return number if draw.random() < 0.5 else wide(number), ""
    if form == 3:
        word = draw.choice(["전화", "고객센터", "문의", "대표번호"])
        return f"{draw.choice(REPRESENTATIVE)}{draw.choice([*DASHES, ''])}{four[1]}", word
    abroad = draw.choice(["+82 ", "+82-", "+82", "(+82)", "+82 (0)", "0082-"])
    return abroad + _joined(["10", *four], draw.choice("- ."), draw, styles=False), ""


def account(draw: random.Random) -> tuple[str, str]:
    """As its bank divides it, behind the name of the bank."""
    bank = draw.choice(list(BANKS))
    sizes = BANKS[bank]
    first = {"카카오뱅크": "3333", "우리은행": "1002", "농협": "302", "신한은행": "110"}.get(bank, "")
    number = first + "".join(draw.choices("123456789", k=sum(sizes) - len(first)))
    # Thirteen digits in one piece may be a resident number as well.
    separator = draw.choice([*DASHES, " ", "" if len(number) != 13 else "-"])
    return _joined(_parts(number, sizes), separator, draw), bank


def email(draw: random.Random) -> tuple[str, str]:
    """At Korean providers, and with other signs than @."""
    name = draw.choice(["hong", "kim.min", "a_b", "lee-77", "x9"]) + str(draw.randint(1, 999))
    domain = draw.choice(["naver.com", "hanmail.net", "example.co.kr", "gmail.com", "korea.ac.kr"])
    address = f"{name}{draw.choice(['@', '@', '@', '＠', '골뱅이', ' 골뱅이 ', '(at)', '[at]'])}{domain}"
    return (address if draw.random() < 0.8 else wide(f"{name}@{domain}")), draw.choice(["메일", "이메일"])


def licence(draw: random.Random) -> tuple[str, str]:
    """Driving licences in their four groups."""
    region = draw.choice([*range(11, 27), 28])
    parts = [str(region), f"{draw.randint(0, 99):02}", f"{draw.randint(0, 999999):06}", f"{draw.randint(0, 99):02}"]
    return _joined(parts, draw.choice([*DASHES, " "]), draw), draw.choice(["", "면허번호"])


def passport(draw: random.Random) -> tuple[str, str]:
    """Both forms, behind a word."""
    old = draw.choice("MSR") + f"{draw.randint(0, 99999999):08}"
    new = f"M{draw.randint(0, 999):03}{draw.choice('ABCDEF')}{draw.randint(0, 9999):04}"
    return draw.choice([old, new]), draw.choice(["여권번호", "여권"])


KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "resident": resident, "card": card, "business": business, "phone": phone, "account": account, "email": email,
    "licence": licence, "passport": passport,
}  # fmt: skip


def harmless(draw: random.Random) -> str:
    """A text with numbers that are nobody's: dates, times, prices, versions, decimals, laws, books, scores, sums."""
    n = draw.randint
    year, month, day = n(1900, 2035), n(1, 12), n(1, 28)
    texts = [
        f"{year}-{month:02}-{day:02} {n(0, 23):02}:{n(0, 59):02}:{n(0, 59):02}.{n(0, 999999):06}",
        f"{year}.{month}.{day} - {year + 1}.{n(1, 12)}.{n(1, 28)}",
        f"{year}{month:02}{day:02}{n(0, 23):02}{n(0, 59):02}{n(0, 59):02}",
        f"{n(1, 999)},{n(0, 999):03},{n(0, 999):03}원",
        f"₩{n(1, 99)},{n(0, 999):03}~{n(1, 99)},{n(0, 999):03}",
        f"버전 {n(0, 30)}.{n(0, 30)}.{n(0, 9999)}.{n(0, 300)}",
        f"{n(0, 99)}.{n(0, 10**12):012}",
        f"제{n(1, 900)}조 제{n(1, 20)}항, {year}-{n(1, 9999)}호",
        f"{year}다{n(1000, 99999)} 판결",
        f"ISBN 978-89-{n(10, 99)}-{n(10000, 99999)}-{n(0, 9)}",
        f"{n(0, 9)}-{n(0, 9)}, {n(60, 120)}-{n(60, 120)}",
        f"{n(100, 999)}+{n(100, 9999)}={n(1000, 99999)}, {n(10, 99)}*{n(100, 999)}-{n(1000, 9999)}",
        f"{n(1400, 1700)}-{n(1701, 2000)}년",
        f"{n(37, 38)}.{n(0, 10**6):06}, {n(126, 129)}.{n(0, 10**6):06}",
        f"SKU-{n(1000, 9999)}-{n(1000, 9999)}",
        f"https://example.com/{n(10**11, 10**12 - 1)}",
        f"주문번호 {year}{month:02}{day:02}-{n(0, 9999999):07}",
        " ".join(str(n(1, 45)) for _ in range(7)),
    ]
    return f"{draw.choice(BEFORE)}{draw.choice(texts)}{draw.choice(['', ' 끝', '.', '이다', ')'])}"


def wide(text: str) -> str:
    """The text with full-width characters for those of ASCII."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " else c for c in text)


def _parts(number: str, sizes: tuple[int, ...]) -> list[str]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [number[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _joined(parts: list[str], separator: str, draw: random.Random, *, styles: bool = True) -> str:
    """The parts with a separator, sometimes with full-width digits, or with every digit by itself."""
    style = draw.random() if styles else 1.0
    if style < 0.15:
        return separator.join(map(wide, parts))
    if style < 0.3 and not separator:
        return " ".join("".join(parts))
    return separator.join(parts)
