"""Personal data: what has a right check digit or a telling context goes, what only looks like it stays."""

import datetime
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stdnum import luhn
from stdnum.kr import rrn

from megatron_ko.data.clean.check_digits import birth_date, business_ok, luhn_ok, resident_ok
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.personal import MASKS, Personal, PersonalOptions, find_personal
from megatron_ko.data.clean.stage import Changed, Dropped

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


@pytest.mark.parametrize(
    "text",
    [
        "010-1234-5678",
        "010 1234 5678",
        "010.1234.5678",
        "01012345678",
        "011-234-5678",
        "+82 10-1234-5678",
        "+82-2-123-4567",
        "02-123-4567",
        "02)1234-5678",
        "(031) 123-4567",
        "070-1234-5678",
        "0505-123-4567",
    ],
)
def test_phones(text: str) -> None:
    assert kinds(f"연락처는 {text}입니다") == ["phone"]
    assert Personal(PersonalOptions())(Page(f"연락처는 {text}입니다")) == Changed(
        "연락처는 [전화번호]입니다", {"phone": 1}
    )


@pytest.mark.parametrize(
    "text",
    [
        "국민은행 123456-04-123456 홍길동",
        "카카오뱅크 3333-01-1234567",
        "계좌번호: 110-123-456789",
        "농협 302-1234-5678-91 입금",
        "입금 계좌는 신한 110123456789",
    ],
)
def test_accounts_behind_a_bank(text: str) -> None:
    assert kinds(text) == ["account"]


MAIL = ["hong.gildong+a@example.co.kr", "01012345678@naver.com", "메일은 a_b@naver.com으로", "<x@y.dev>"]


@pytest.mark.parametrize("text", MAIL)
def test_mail(text: str) -> None:
    assert kinds(text) == ["email"]


@pytest.mark.parametrize("text", ["접속 8.8.8.80", "서버(203.0.114.7)", "2001:4860:4860::8888"])
def test_public_addresses(text: str) -> None:
    assert kinds(text) == ["ip"]


@pytest.mark.parametrize(
    "text",
    [
        "가격은 1,234,567원이고 2024-01-02 12:30:45에 팔렸다",
        "대표번호 1588-1234, 119, 112",
        "010-123-456 010-1234-56789 0101234567",
        "ISBN 978-89-1234-567-8, 978-3-16-148410-0",
        "192.168.0.1 10.0.0.1 127.0.0.1 Chrome/91.0.4472.124 버전 1.2.3.4 v4.3.2.1 3.14.15 300.1.1.1",
        "git@github.com:name/repository https://user@host/path @name react@18.2.0 a@b",
        "12345678901234567890 3.141592653589793 0x1234567890123",
        "주문 번호 123-456-789012",  # an account only behind a bank
        "우편번호 06236, 위도 37.5665 경도 126.9780",
        "std::vector, 12:30, ::1, aa:bb",
        "1.2.3.4편 모두 봤다",
        "991332-1234567",  # no 13th month
        "124-81-00999",
        "4111-1111-1111-1112",
    ],
)
def test_near_misses_stay(text: str) -> None:
    assert kinds(text) == []


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
