"""Check digits: resident registration numbers, business numbers, cards, bar codes. All take strings of digits."""

import datetime

_RESIDENT_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
_BUSINESS_WEIGHTS = (1, 3, 7, 1, 3, 7, 1, 3, 5)
# The 7th digit: century, and citizen or foreigner.
_CENTURY = {
    "9": 1800,
    "0": 1800,
    "1": 1900,
    "2": 1900,
    "5": 1900,
    "6": 1900,
    "3": 2000,
    "4": 2000,
    "7": 2000,
    "8": 2000,
}
# From this day on new numbers end in six random digits, without a check digit (Enforcement Rule of the Resident
# Registration Act, as amended in 2020). People born before keep theirs, unless they had it changed.
RANDOM_SINCE = datetime.date(2020, 10, 5)
# A year and not today, so that the same text is cleaned in the same way next year.
_LAST_YEAR = 2039


def birth_date(number: str) -> datetime.date | None:
    """The date in a resident registration number of 13 digits, or None when there is no such day, or not yet."""
    try:
        born = datetime.date(_CENTURY[number[6]] + int(number[:2]), int(number[2:4]), int(number[4:6]))
    except ValueError:
        return None
    return born if born.year <= _LAST_YEAR else None


def resident_ok(number: str) -> bool:
    """Whether the 13th digit is the check digit of the others; for foreigners two rules are in use, either will do."""
    total = sum(weight * int(digit) for weight, digit in zip(_RESIDENT_WEIGHTS, number, strict=False))
    constants = (11, 13) if number[6] in "5678" else (11,)
    return any((constant - total % 11) % 10 == int(number[12]) for constant in constants)


def business_ok(number: str) -> bool:
    """Whether the 10th digit of a business registration number is the check digit of the others."""
    total = sum(weight * int(digit) for weight, digit in zip(_BUSINESS_WEIGHTS, number, strict=False))
    return (10 - (total + int(number[8]) * 5 // 10) % 10) % 10 == int(number[9])


def luhn_ok(number: str) -> bool:
    """Luhn's sum, which every payment card number satisfies."""
    double = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    return sum(double[int(d)] if i % 2 else int(d) for i, d in enumerate(reversed(number))) % 10 == 0


def barcode_ok(number: str) -> bool:
    """Whether the 13th digit is the check digit of an international article number (EAN-13)."""
    return sum(int(digit) * (3 if i % 2 else 1) for i, digit in enumerate(number)) % 10 == 0
