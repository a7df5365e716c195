"""Lines that a web page puts around its text: menus, sharing buttons, copyright notices, bylines, link collections.

Only whole, short lines are removed, so that a sentence about copyright stays, and none inside fenced code. A line is
part of a menu if nothing is left of it without the words of menus and the marks between them.
"""

import re
from collections import Counter

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, StageKind

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

# A word with at least this many letters is a button even when it stands alone: 공유하기.
_TELLING = 4
_COPYRIGHT = re.compile(
    r"무단\s*(?:전재|복제|배포|도용)|재배포\s*(?:를\s*)?금지|저작권자\s*[ⓒ©(<:]|"
    r"all rights reserved|copyright\s*[ⓒ©(\d]|^[ⓒ©]\s*\S",
    re.I,
)
# Every text with such a line contains one of these.
_COPYRIGHT_WORDS = ("무단", "재배포", "저작권자", "ⓒ", "©", "opyright", "OPYRIGHT", "ights reserved", "IGHTS RESERVED")
_FENCES = ("```", "~~~")
# Patterns of whole lines, without groups of their own.
_AT_ONCE = {
    "byline": r"(?:\[[^\]]{2,30}\]|\([^)]{2,30}\))?\s*[가-힣]{2,4}\s*(?:인턴|수습|선임|전문)?\s*기자[\])=\s]*"
    r"(?:[\w.+-]+@[\w-]+(?:\.[\w-]+)+)?\s*$",
    "counter": r"(?:조회수?|댓글수?|추천수?|공감|좋아요|공유|스크랩|작성일|등록일|수정일|입력|수정|승인|작성자|"
    r"등록자|글쓴이)"
    r"\s*[:|]?[\d,.:/\-\s오전후시분년월일()]*\d[\d,.:/\-\s오전후시분년월일()]*$",
    "links": r"[▶▷►☞※◆◇■□▲△●○★☆·•>\-\s]*(?:관련\s*(?:기사|뉴스|글)|주요\s*뉴스|인기\s*(?:기사|글)|많이\s*본)",
    # No letter, digit or picture, and at least one non-ASCII sign: rules of Markdown and brackets of code stay.
    "symbols": "(?=[^\\w]*[^\\w\\x00-\\x7f])[^\\w\u2600-\u27bf\U0001f000-\U0001faff]+$",
}
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
        self._menu_starts = {word[:2].lower() for word in words}
        self._copyright = options.copyright
        wanted = {"byline": options.bylines, "counter": options.counters, "links": options.links}
        wanted["symbols"] = options.symbols
        patterns = [f"(?P<{name}>{_AT_ONCE[name]})" for name, is_wanted in wanted.items() if is_wanted]
        self._line = re.compile("|".join(patterns) or r"(?!)")

    def __call__(self, page: Page) -> Changed | None:
        """Remove lines."""
        copyrighted = self._copyright and any(word in page.text for word in _COPYRIGHT_WORDS)
        kept, removed, code = [], Counter[str](), False
        for line in page.lines:
            stripped = line.strip()
            reason = None
            if stripped.startswith(_FENCES):
                code = not code
            elif not code and 0 < len(stripped) <= self._options.longest_line:
                reason = self._judge(stripped, copyrighted)
            if reason is None:
                kept.append(line)
            else:
                removed[reason] += 1
        return Changed("\n".join(kept).strip("\n"), removed) if removed else None

    def _judge(self, line: str, copyrighted: bool) -> str | None:
        if copyrighted and _COPYRIGHT.search(line):
            return "copyright"
        if found := self._line.match(line):
            return found.lastgroup
        return "menu" if self._is_menu(line) else None

    def _is_menu(self, line: str) -> bool:
        bare = line.lstrip(" |/>›»·•[(▲▼◀▶-")
        if bare[:3].replace(" ", "")[:2].lower() not in self._menu_starts or not self._menu.match(bare):
            return False
        words = self._menu.findall(line)
        # One short word alone may be a heading: 메뉴, 추천.
        several = len(words) > 1 or len(words[0]) >= _TELLING
        return several and not _REST.sub("", self._menu.sub("", line))


KIND = StageKind(BoilerplateOptions, Boilerplate)
