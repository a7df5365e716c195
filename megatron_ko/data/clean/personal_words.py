"""What the text around a number says about it: a bank, a telephone, an order, an amount of money."""

import re

_CONTEXT = 24
Match = re.Match[str]


def _words(words: str, gap: str = r"[^\d\n]{0,16}\n?\s?") -> "re.Pattern[str]":
    """Words that stand before a number, on its line or at the end of the line before."""
    return re.compile(rf"(?:{words}){gap}$", re.I)


RESIDENT_WORD = _words(r"주민|외국인\s?등록|거소|(?<![가-힣])등록\s?번호|생년월일|\bresident|\bRRN|\bARC\b")
COMPANY_WORD = _words(r"법인\s?(?:등록)?\s?번호", r"[^\d\n]{0,10}")
SERIAL_WORD = _words(
    r"(?:주문|송장|상품|제품|접수|관리|문서|공고|특허|등록|부품|일련|예약)\s?(?:번호|코드)|시리얼|품번|모델|주문(?!자)|송장|부품|코드|(?<![a-z])"
    r"(?:serial|order|model|sku|code|no\.|is[sb]n)",
    r"[^\d\n]{0,6}",
)
BUSINESS_WORD = _words(r"사업자|business|(?<![가-힣])등록\s?번호|\bBRN")
PASSPORT_WORD = _words(r"여권|passport", r"[^\d\n]{0,20}\n?\s?")
LICENCE_WORD = _words(r"면허", r"[^\d\n]{0,12}\n?\s?")
CARD_WORD = _words(r"카드|(?<![a-z])card|visa|비자|master|마스터|amex|아멕스")
_PHONE_WORD = _words(
    r"전화|연락|휴대|핸드폰|핸펀|(?<!아이)폰|문의|상담|고객\s?센터|콜\s?센터|대표\s?번호|팩스|문자|예약(?!\s?번)|[☎☏✆📞📱]|"
    r"(?<![a-z])(?:ars|fax|tel|phone|mobile|call|cell)"
)
# Letters that say so only where they touch the number: T.02-123-4567
_PHONE_LETTER = re.compile(r"(?<![a-z])(?:h\.?p[.: )\]]{0,3}|(?:t|m|f|mob)[.: )\]]{1,3})$", re.I)
_PHONE_AFTER = re.compile(
    r"[^\d\n]{0,4}(?:으?로|에)\s?(?:전화|연락|문의|문자|예약|카톡|톡)|\s?\(?(?:전화|휴대|핸드폰|팩스)"
)
_BANK = r"은행|뱅크|bank|계좌|통장|농협|수협|신협|축협|새마을\s?금고|우체국|예금|입금|송금|이체|후원금"
# Also words of other meanings: 우리 is "we", 하나 "one".
_SHORT_BANK = (
    r"국민|신한|우리|하나|기업|씨티|카카오|카뱅|토스|토뱅|케이|케뱅|산업|제일|"
    r"대구|부산|경남|광주|전북|제주|KB|NH|IBK|SC"
)
_ACCOUNT_WORD = _words(_BANK, r"[^\d\n]{0,16}\n?\s?")
_ACCOUNT_AFTER = re.compile(
    rf"[\s,(/]{{0,3}}(?:(?:{_SHORT_BANK})?(?:은행|뱅크)|{_BANK}|(?:{_SHORT_BANK})[\s)]|으?로\s?(?:입금|송금|이체))",
    re.I,
)
_SHORT_BANK_WORD = _words(_SHORT_BANK, r"[\s:(]{0,3}")
_BANK_ANYWHERE = re.compile(_BANK, re.I)
VERSION_WORD = re.compile(
    r"(?:버전|version|ver\.?|[v/~-]|빌드|build|펌웨어|firmware|릴리스|release|rev\.?|패치|patch|업데이트|커널|kernel|"
    r"chrome|크롬|firefox|safari|edge|windows|android|ios|섹션|section|절|항목)\s*$",
    re.I,
)
VERSION_AFTER = re.compile(r"\s?\(?(?:버전|version|빌드|build|절|장|편|항)", re.I)
ADDRESS_WORD = re.compile(r"IP|아이피|서버|접속|주소|ping|host|호스트|네트워크|DNS|게이트웨이", re.I)
_AMOUNT = re.compile(r" ?(?:원|달러|명|개(?!인)|번지|만|억|km|kg|건|%|년|점|회|호(?![가-힣]))")
# What would make it a product number, a part of an address on the web, or of a longer number.
_CODED = re.compile(r"[A-Za-z_=&#?%/]$|[A-Za-z0-9]-$|\d[.,]$|제 ?$")
_SUM = re.compile(r" ?[=×÷] ?-?[\d?]")
_CODED_AFTER = re.compile(rf"[A-Za-z_]|-[A-Za-z]|{_SUM.pattern}")


def before(match: Match) -> str:
    """The text before a match."""
    return match.string[max(0, match.start() - _CONTEXT) : match.start()]


def after(match: Match) -> str:
    """The text behind a match."""
    return match.string[match.end() : match.end() + _CONTEXT]


def coded(match: Match) -> bool:
    """Whether it is a piece of something else, by what it touches."""
    return _CODED.search(before(match)) is not None or _CODED_AFTER.match(after(match)) is not None


def summed(match: Match) -> bool:
    """Whether the result of a sum follows."""
    return _SUM.match(after(match)) is not None


def counted(match: Match) -> bool:
    """Whether a unit follows: an amount of money, a number of people."""
    return _AMOUNT.match(after(match)) is not None


def called(match: Match) -> bool:
    """Whether the words around say that it is a phone number."""
    text = before(match)
    return bool(_PHONE_WORD.search(text) or _PHONE_LETTER.search(text) or _PHONE_AFTER.match(after(match)))


def banked(match: Match) -> bool:
    """Whether the words around say that it is a bank account; a short name alone only of a number with hyphens."""
    text = before(match)
    if _ACCOUNT_WORD.search(text) or _ACCOUNT_AFTER.match(after(match)):
        return True
    if _SHORT_BANK_WORD.search(text) is None:
        return False
    return not match.group().isdigit() or _BANK_ANYWHERE.search(text) is not None
