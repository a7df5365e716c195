"""Lines that a web page puts around its text: menus, sharing buttons, copyright notices, bylines, link collections.

Only whole lines go, only short ones, so that a sentence about copyright stays, and none inside fenced code. A line
belongs to a menu when nothing is left of it once the words of menus and the marks between them are taken away.
"""

import re
from collections import Counter

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, Kind

# What Korean pages write on buttons and menus.
_MENU = (
    "로그인 로그아웃 회원가입 마이페이지 장바구니 고객센터 공지사항 사이트맵 전체메뉴 메뉴 검색 통합검색 "
    "홈으로 처음으로 본문바로가기 메뉴바로가기 주메뉴 바로가기 맨위로 위로 TOP 목록 목록보기 목록으로 이전 "
    "다음 이전글 다음글 이전페이지 다음페이지 더보기 전체보기 닫기 열기 펼치기 접기 수정 삭제 신고 신고하기 "
    "답글 답글쓰기 댓글 댓글쓰기 댓글달기 글쓰기 공유 공유하기 인쇄 인쇄하기 프린트 스크랩 좋아요 구독 "
    "구독하기 추천 추천하기 북마크 즐겨찾기 주소복사 URL복사 링크복사 페이스북 트위터 카카오톡 카카오스토리 "
    "네이버블로그 밴드 인스타그램 유튜브 이메일 글자크게 글자작게 글자크기 개인정보처리방침 "
    "개인정보취급방침 이용약관 청소년보호정책 이메일무단수집거부 저작권정책 찾아오시는길 회사소개 광고문의 "
    "제휴문의 기사제보 Facebook Twitter KakaoTalk Instagram YouTube Home Login Logout Menu Search Share "
    "Print"
)

# Letters of a word that is a button even when it stands alone: 공유하기.
_TELLING = 4
_COPYRIGHT = re.compile(
    r"무단\s*(?:전재|복제|배포|도용)|재배포\s*(?:를\s*)?금지|저작권자\s*[ⓒ©(<:]|"
    r"all rights reserved|copyright\s*[ⓒ©(\d]|^[ⓒ©]\s*\S",
    re.I,
)
_BYLINE = re.compile(
    r"^(?:\[[^\]]{2,30}\]|\([^)]{2,30}\))?\s*[가-힣]{2,4}\s*(?:인턴|수습|선임|전문)?\s*기자[\])=\s]*"
    r"(?:[\w.+-]+@[\w-]+(?:\.[\w-]+)+)?\s*$"
)
_COUNTER = re.compile(
    r"^(?:조회(?:수)?|댓글(?:수)?|추천(?:수)?|공감|좋아요|공유|스크랩|작성일|등록일|수정일|입력|수정|승인|작성자|등록자|글쓴이)"
    r"\s*[:|]?[\d,.:/\-\s오전후시분년월일()]*\d[\d,.:/\-\s오전후시분년월일()]*$"
)
_COUNTED = re.compile(r"조회|댓글|추천|공감|좋아요|공유|스크랩|작성|등록|수정|입력|승인|글쓴이")
_LINKED = re.compile(r"관련|주요|인기|많이")
_LINKS = re.compile(
    r"^(?:[▶▷►☞※◆◇■□▲△●○★☆·•>\-\s]*)(?:관련\s*(?:기사|뉴스|글)|주요\s*뉴스|인기\s*(?:기사|글)|많이\s*본)"
)
# No letter, digit or picture, and something that is no ASCII: rules of Markdown and brackets of code stay.
_SYMBOLS = re.compile("(?=.*[^\\x00-\\x7f])[^\\w\u2600-\u27bf\U0001f000-\U0001faff]+$")
_SYMBOL_LINE = re.compile(r"^[^\w\n]*[^\w\x00-\x7f][^\w\n]*$", re.M)
_REST = re.compile(r"[\s|/>›»·•:,()\[\]▲▼△▽◀▶+\-–~\d]+")


class BoilerplateOptions(Section):
    """Which kinds of lines go."""

    longest_line: int = Field(120, ge=1, description="Longer lines stay, whatever they say.")
    menus: bool = Field(True, description="Lines of nothing but words of menus and buttons.")
    menu_words: tuple[str, ...] = Field((), description="More such words, for the sites at hand.")
    copyright: bool = Field(True, description="무단전재 및 재배포 금지, All rights reserved, ...")
    bylines: bool = Field(True, description="홍길동 기자 name@paper.co.kr")
    counters: bool = Field(True, description="조회수 1,234 | 작성일 2024.01.02")
    links: bool = Field(True, description="Headings of link collections: ▶ 관련기사 ...")
    symbols: bool = Field(True, description="Lines of nothing but symbols, such as · · ·; ASCII is left alone.")


class Boilerplate:
    """The stage."""

    def __init__(self, options: BoilerplateOptions) -> None:
        self._options = options
        words = sorted({*_MENU.split(), *options.menu_words}, key=len, reverse=True) if options.menus else []
        # Words of menus are written with and without spaces: 목록 보기, 목록보기.
        spaced = (r"\s?".join(map(re.escape, word)) if re.match("[가-힣]", word) else re.escape(word) for word in words)
        self._menu = re.compile(rf"(?:{'|'.join(spaced)})(?=\W|\d|$)", re.I)
        self._menu_starts = {word[0] for word in words} | {word[0].swapcase() for word in words}
        # What a text must hold for any of its lines to match; most hold none of it.
        kinds = [
            ("copyright", options.copyright, _COPYRIGHT, _COPYRIGHT.search),
            ("byline", options.bylines, re.compile("기자"), _BYLINE.match),
            ("counter", options.counters, _COUNTED, _COUNTER.match),
            ("links", options.links, _LINKED, _LINKS.match),
            ("symbols", options.symbols, _SYMBOL_LINE, _SYMBOLS.match),
        ]
        self._kinds = [(reason, gate.search, judge) for reason, wanted, gate, judge in kinds if wanted]

    def __call__(self, page: Page) -> Changed | None:
        """Remove lines."""
        possible = [(reason, judge) for reason, gate, judge in self._kinds if gate(page.text)]
        kept, removed, code = [], Counter[str](), False
        for line in page.lines:
            stripped = line.strip()
            reason = None
            if stripped.startswith(("```", "~~~")):
                code = not code
            elif not code and 0 < len(stripped) <= self._options.longest_line:
                reason = next((reason for reason, judge in possible if judge(stripped)), None)
                if reason is None and self._is_menu(stripped):
                    reason = "menu"
            if reason is None:
                kept.append(line)
            else:
                removed[reason] += 1
        return Changed("\n".join(kept).strip("\n"), removed) if removed else None

    def _is_menu(self, line: str) -> bool:
        bare = line.lstrip(" |/>›»·•[(▲▼◀▶-")
        if not bare or bare[0] not in self._menu_starts or not self._menu.match(bare):
            return False
        words = self._menu.findall(line)
        # One short word alone may be a heading: 메뉴, 추천.
        several = len(words) > 1 or len(words[0]) >= _TELLING
        return several and not _REST.sub("", self._menu.sub("", line))


KIND = Kind(BoilerplateOptions, Boilerplate)
