"""Personal data: what has a right check digit or a telling context goes, what only looks like it stays."""

import datetime
import gzip
import json
import random
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planted_personal import KINDS, harmless, plant
from pydantic import ValidationError
from stdnum import luhn
from stdnum.kr import rrn

from megatron_ko.data.clean.check_digits import birth_date, business_ok, luhn_ok, resident_ok
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.personal import MASKS, Personal, PersonalOptions, find_personal
from megatron_ko.data.clean.stage import Changed, Dropped
from megatron_ko.data.clean.unicode import Unicode, UnicodeOptions

LIST = Path(__file__).parent / "data/personal.jsonl"
CASES = [json.loads(line) for line in LIST.read_text(encoding="utf-8").splitlines()]
DIGITS = st.text("0123456789", min_size=4, max_size=4)
DATES = st.dates(datetime.date(1900, 1, 1), datetime.date(2019, 12, 31))
KOREAN = st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), max_size=12)


def kinds(text: str) -> list[str]:
    return [finding.name for finding in find_personal(text)]


def resident(date: datetime.date, seventh: str, serial: str) -> str:
    """A number with python-stdnum's check digit."""
    body = f"{date:%y%m%d}{seventh}{serial}0"[:12]
    return body + rrn.calc_check_digit(body)


@given(DATES, st.sampled_from("1234"), DIGITS, st.sampled_from(["-", "", " - ", "–"]), KOREAN, KOREAN)
def test_resident_numbers_with_a_right_check_digit_go(
    date: datetime.date, seventh: str, serial: str, dash: str, before: str, after: str
) -> None:
    assume((seventh in "12") == (date.year < 2000))
    number = resident(date, seventh, serial)
    assert birth_date(number) == date and resident_ok(number)
    shown = f"{number[:6]}{dash}{number[6:]}"
    result = Personal(PersonalOptions())(Page(f"{before} {shown}{after}"))
    assert result == Changed(f"{before} {MASKS['resident']}{after}", {"resident": 1})


@given(DATES, st.sampled_from("1234"), DIGITS, st.integers(1, 9))
def test_a_wrong_check_digit_stays_unless_it_is_called_a_resident_number(
    date: datetime.date, seventh: str, serial: str, off: int
) -> None:
    number = resident(date, seventh, serial)
    wrong = number[:12] + str((int(number[12]) + off) % 10)
    shown = f"{wrong[:6]}-{wrong[6:]}"
    born = birth_date(wrong)
    assume(born is not None and born < datetime.date(2020, 10, 5))
    assert "resident" not in kinds(f"주문 번호 {shown} 입니다")
    assert kinds(f"주민등록번호: {shown}") == ["resident"]


def test_numbers_since_october_2020_have_no_check_digit() -> None:
    for last in range(10):
        assert kinds(f"아기 번호는 201005-312345{last}") == ["resident"]
        assert kinds(f"아기 번호는 210230-312345{last}") == []  # no such day
    some = [kinds(f"201004-312345{last}") for last in range(10)]
    assert some.count(["resident"]) == 1, "the day before, one digit of ten is right"
    unsplit = [kinds(f"주문 210105312345{last}") for last in range(10)]
    assert unsplit.count(["resident"]) == 1, "13 digits in a row need their check digit"


@given(DATES, st.sampled_from("5678"), DIGITS)
def test_foreigners_have_either_check_digit(date: datetime.date, seventh: str, serial: str) -> None:
    body = f"{date:%y%m%d}{seventh}{serial}0"[:12]
    assert sum(resident_ok(body + str(last)) for last in range(10)) == 2
    assert resident_ok(body + rrn.calc_check_digit(body))


# Published by the companies themselves, and python-stdnum's examples.
@pytest.mark.parametrize("number", ["124-81-00998", "220-81-62517", "120-81-47521", "116-82-00276", "134-86-72683"])
def test_business_numbers(number: str) -> None:
    assert kinds(f"사업자등록번호 {number} 대표") == ["business"]
    assert kinds(f"사업자번호: {number.replace('-', '')}") == ["business"]
    assert kinds(f"제품 {number.replace('-', '')}") == []
    for last in "0123456789":
        if last != number[-1]:
            assert not business_ok((number[:-1] + last).replace("-", ""))
            assert "business" not in kinds(f"번호 {number[:-1]}{last}")


@given(st.sampled_from(["4", "51", "55", "9"]), st.text("0123456789", min_size=14, max_size=14), st.sampled_from(" -"))
def test_cards_need_luhn(issuer: str, rest: str, separator: str) -> None:
    body = (issuer + rest)[:15]
    number = body + luhn.calc_check_digit(body)
    assert luhn_ok(number) and luhn.is_valid(number)
    groups = separator.join(number[i : i + 4] for i in range(0, 16, 4))
    assert kinds(f"카드 {groups}로 결제") == ["card"]
    wrong = groups[:-1] + str((int(groups[-1]) + 1) % 10)
    assert "card" not in kinds(f"카드 {wrong}로 결제")


@pytest.mark.parametrize("case", [case for case in CASES if "kind" in case], ids=lambda case: case["text"])
def test_written_by_hand(case: dict[str, str]) -> None:
    """Every way of writing in the list is found: just the data, and as what it is."""
    text = case["text"]
    found = find_personal(text, addresses=True)
    assert [(one.name, text[one.start : one.end]) for one in found] == [(case["kind"], case["data"])]
    masked = text.replace(case["data"], MASKS[found[0].name])
    assert Personal(PersonalOptions(address="mask"))(Page(text)) == Changed(masked, {case["kind"]: 1})


@pytest.mark.parametrize("text", [case["text"] for case in CASES if "kind" not in case], ids=str)
def test_harmless_numbers_stay(text: str) -> None:
    assert find_personal(text, addresses=True) == []


def test_the_list_is_long_and_names_every_kind() -> None:
    kinds_listed = Counter(case.get("kind", "none") for case in CASES)
    assert kinds_listed["none"] >= 120 and kinds_listed.total() - kinds_listed["none"] >= 120
    assert set(kinds_listed) == {*MASKS, "none"}


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.randoms(use_true_random=False), st.booleans())
def test_planted_numbers_are_found(kind: str, draw: random.Random, unicode_first: bool) -> None:
    """In every way of writing, before and after the stage that repairs characters."""
    text, data = plant(kind, draw)
    if unicode_first and isinstance(repaired := Unicode(UnicodeOptions(encoding=False))(Page(text)), Changed):
        text, data = repaired.text, ""
    found = find_personal(text)
    assert [one.name for one in found] == [kind], text
    if data:  # an opening bracket before it may belong to it: (02)123-4567
        assert text[found[0].start : found[0].end].strip("([") == data.strip("(["), text


@settings(max_examples=600, deadline=None)
@given(st.randoms(use_true_random=False))
def test_planted_harmless_numbers_stay(draw: random.Random) -> None:
    text = harmless(draw)
    assert find_personal(text) == [], text


def test_reviews_change_only_where_they_hold_personal_data(shared_data: Path) -> None:
    """The counts were made by looking at every finding and at every other longer number in these reviews."""
    with gzip.open(shared_data / "nsmc_reviews.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(200_000), strict=False)]
    assert Counter(kind for text in texts for kind in kinds(text)) == {"email": 18, "phone": 7}


def test_actions() -> None:
    text = "메일 a@b.com, 전화 010-1234-5678"
    keep = Personal(PersonalOptions(email="keep"))(Page(text))
    assert keep == Changed("메일 a@b.com, 전화 [전화번호]", {"phone": 1})
    assert Personal(PersonalOptions(phone="drop", email="mask"))(Page(text)) == Dropped("phone")
    assert Personal(PersonalOptions(phone="keep", email="keep"))(Page(text)) is None
    own = Personal(PersonalOptions(masks={"email": "<MAIL>"}))(Page("a@b.com"))
    assert own == Changed("<MAIL>", {"email": 1})
    with pytest.raises(ValidationError):
        PersonalOptions(masks={"mail": "x"})


@settings(max_examples=400)
@given(st.text("0123456789-+(). @abc.:가 나\n", max_size=120))
def test_findings_are_ordered_and_apart_and_nothing_else_changes(text: str) -> None:
    found = find_personal(text)
    assert all(0 <= f.start < f.end <= len(text) for f in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
    result = Personal(PersonalOptions())(Page(text))
    masked = result.text if isinstance(result, Changed) else text
    edges = [0, *(edge for f in found for edge in (f.start, f.end)), len(text)]
    kept = "".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    for mask in MASKS.values():
        masked = masked.replace(mask, "")
    assert masked == kept


@given(st.text(max_size=200))
def test_nfc_stays_nfc(text: str) -> None:
    text = unicodedata.normalize("NFC", text) + " 010-1234-5678"
    result = Personal(PersonalOptions())(Page(text))
    assert isinstance(result, Changed)
    assert unicodedata.is_normalized("NFC", result.text)
