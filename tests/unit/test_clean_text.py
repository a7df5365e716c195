"""Stages that repair or cut text: what they change, what they must leave alone, and NFC throughout."""

import gzip
import json
import unicodedata
from pathlib import Path

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ko.data.clean.blocklist import BlocklistOptions, blocklist
from megatron_ko.data.clean.boilerplate import Boilerplate, BoilerplateOptions
from megatron_ko.data.clean.hangul import HangulOptions, JamoRunOptions, JamoRuns, hangul
from megatron_ko.data.clean.html import Html, HtmlOptions
from megatron_ko.data.clean.length import LengthOptions, length
from megatron_ko.data.clean.lines import LineOptions, LineRules
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.speech_level import SpeechLevel, SpeechLevelOptions, sentence_level
from megatron_ko.data.clean.stage import Changed, Dropped, Noted, Stage
from megatron_ko.data.clean.unicode import Unicode, UnicodeOptions, encoding_repair
from megatron_ko.data.clean.words import sentences
from megatron_ko.errors import DataError

UNTOUCHED = "ㅋㅋ ㅠㅠ ① ㈜ ½ ㎏ ℃ ﬁ Ａ１！ ｱ ﾡ ‘따옴표’ “인용” …… 👨‍👩‍👧 ❤️ é 漢字"


def applied(stage: Stage, text: str) -> str:
    verdict = stage(Page(text))
    assert not isinstance(verdict, Dropped), verdict
    return verdict.text if isinstance(verdict, Changed) else text


def test_what_a_reader_sees_survives() -> None:
    assert Unicode(UnicodeOptions())(Page(UNTOUCHED)) is None


@pytest.mark.parametrize(
    ("text", "expected", "reasons"),
    [
        ("ì•ˆë…•í•˜ì„¸ìš”", "안녕하세요", {"encoding"}),
        ("한글과 dâ€™accord 가", "한글과 d’accord 가", {"encoding"}),
        (unicodedata.normalize("NFD", "한글 각"), "한글 각", {"nfc"}),
        ("가\r\n나\r다\u2028라", "가\n나\n다\n라", {"line_breaks"}),
        ("\x1b[31m빨강\x1b[0m\x07", "빨강", {"terminal_escapes", "controls"}),
        ("\ufeff가\u200b나\u00ad다", "가나다", {"invisible"}),
        ("가\u00a0나\u3000다", "가 나 다", {"spaces"}),
        ("  가  \n\n\n\n\n나\t\n", "가\n\n\n나", {"trim"}),
        ("ᄀ\u200bᅡ", "가", {"invisible", "nfc"}),
    ],
)
def test_repairs(text: str, expected: str, reasons: set[str]) -> None:
    verdict = Unicode(UnicodeOptions())(Page(text))
    assert isinstance(verdict, Changed)
    assert (verdict.text, set(verdict.counts)) == (expected, reasons)


def test_lost_characters_drop_a_text() -> None:
    stage = Unicode(UnicodeOptions(max_replacement=0.1))
    assert stage(Page("가나다라\ufffd")) == Dropped("lost_characters")
    assert stage(Page("가나다라마바사아자차카\ufffd")) is None


@settings(max_examples=300)
@given(st.text(st.one_of(st.characters(), st.sampled_from("각ㅋㅠ가 \n\tÃ©â€™")), max_size=60))
def test_the_result_is_nfc_and_final(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert unicodedata.is_normalized("NFC", applied(Unicode(UnicodeOptions()), text))
    # A second round of encoding repair can find what the first one laid bare; all else is done once.
    stage = Unicode(UnicodeOptions(encoding=False))
    once = applied(stage, text)
    assert applied(stage, once) == once


def test_encoding_repair_is_ftfys_on_real_documents(shared_data: Path) -> None:
    """Lines without suspicious characters are never shown to ftfy; it would have left them alone."""
    repair, config = encoding_repair(), ftfy.TextFixerConfig(explain=False)
    texts = []
    for name, every in (("tech_docs_ko", 4), ("nsmc_reviews", 60)):
        with gzip.open(shared_data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for index, line in enumerate(lines) if index % every == 0]
    assert len(texts) > 11_000
    for text in texts:
        assert repair(text) == "".join(ftfy.fix_encoding(line, config) for line in text.splitlines(keepends=True))


@settings(max_examples=300)
@given(
    st.text(st.one_of(st.sampled_from("Ã©â€™ì•ˆë…•‚Ää×²°ĀœÂ \n가a"), st.characters(max_codepoint=0x2FF)), max_size=30)
)
def test_encoding_repair_is_ftfys_on_damaged_text(text: str) -> None:
    config = ftfy.TextFixerConfig(explain=False)
    expected = "".join(ftfy.fix_encoding(line, config) for line in _at_line_feeds(text))
    assert encoding_repair()(text) == expected


def _at_line_feeds(text: str) -> list[str]:
    return [part + "\n" for part in text.split("\n")[:-1]] + [text.split("\n")[-1]]


def test_html() -> None:
    page = (
        "<!doctype html><html><head><title>제목</title></head><body><nav>메뉴</nav><p>첫 <b>문단</b>이다.<br>둘째 줄"
        "<pre>def f():\n    return 1</pre><ul><li>하나<li>둘</ul><table><tr><td>가<td>나</table>"
        "<script>x</script></body>"
    )
    expected = "첫 문단이다.\n둘째 줄\n\ndef f():\n    return 1\n\n하나\n둘\n\n가\t나"
    assert Html(HtmlOptions())(Page(page)) == Changed(expected, {"page": 1})
    assert Html(HtmlOptions())(Page("<p>문단</p><p>둘 &lt; 셋</p>")) == Changed("문단\n\n둘 < 셋", {"fragment": 1})
    assert Html(HtmlOptions())(Page("R&amp;D &quot;회사&quot; AT&T")) == Changed('R&D "회사" AT&T', {"entities": 3})


@pytest.mark.parametrize(
    "text",
    [
        "Vec<T>와 a < b, x > y",
        "```html\n<div><p>코드</p></div>\n```\n설명",
        "<b> 태그는 글자를 굵게 한다. " + "설명이다. " * 30,
        '## 제목\n\n설명이다.\n<span class="caption">그림 1: 표</span>\n<br>\n<br>',
        '<span class="x">Markdown의 글</span>\n줄이 나뉜다',
    ],
)
def test_text_about_html_is_no_html(text: str) -> None:
    assert Html(HtmlOptions())(Page(text)) is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("로그인 | 회원가입 | 고객센터", "menu"),
        ("이전글  다음글  목록 보기", "menu"),
        ("페이스북 트위터 카카오톡 URL복사", "menu"),
        ("저작권자 ⓒ 한국일보, 무단전재 및 재배포 금지", "copyright"),
        ("Copyright © 2024 Example Co. All rights reserved.", "copyright"),
        ("홍길동 기자 hong@example.co.kr", "byline"),
        ("[서울=연합뉴스] 홍길동 기자", "byline"),
        ("조회수 1,234", "counter"),
        ("작성일: 2024-01-02 12:30", "counter"),
        ("▶ 관련기사 더 보기", "links"),
        ("· · · · ·", "symbols"),
    ],
)
def test_boilerplate_lines_go(line: str, reason: str) -> None:
    text = f"앞 문장이다.\n{line}\n뒤 문장이다."
    assert Boilerplate(BoilerplateOptions())(Page(text)) == Changed("앞 문장이다.\n뒤 문장이다.", {reason: 1})


@pytest.mark.parametrize(
    "line",
    [
        "로그인 버튼을 누르면 화면이 바뀐다.",
        "다음 주에 만나자.",
        "가",
        "메뉴",
        "👍👍",
        "나는 그 기자를 만났다.",
        "이 법은 저작권자의 권리를 지킨다.",
        "수정은 맑은 돌이다",
        "---",
        "| --- | --- |",
        "});",
        "<>",
        "// ...",
        "```\n로그인 | 회원가입\n· · ·\n```",
        "조회수가 많은 글이 좋은 글은 아니다.",
        "좋아요!",
        "저작권자 ⓒ 한국일보, 무단전재 및 재배포 금지라는 문구는 기사마다 끝에 붙는데, "
        + "그 법적 효력을 두고는 의견이 갈린다. " * 5,
    ],
)
def test_sentences_are_no_boilerplate(line: str) -> None:
    assert Boilerplate(BoilerplateOptions())(Page(f"앞 문장이다.\n{line}")) is None


def test_hangul() -> None:
    stage = hangul(HangulOptions(min_ratio=0.5, max_jamo=0.3))
    assert stage(Page("한국어 text 섞인 문장이다")) is None
    assert stage(Page("only English letters here 가")) == Dropped("little_hangul")
    assert stage(Page("1234 5678")) == Dropped("little_hangul")
    assert stage(Page("ㅋㅋㅋㅋ 좋아")) == Dropped("jamo")
    assert stage(Page("ㅋㅋㅋㅋ")) == Dropped("jamo")
    assert stage(Page("정말 재미있다 ㅋㅋ")) is None
    assert stage(Page("漢字とかな")) == Dropped("little_hangul")
    assert [(m.reason, m.value) for m in stage.measures(Page("가나 ab"))] == [("little_hangul", 0.5), ("jamo", 0.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ㅋㅋㅋㅋㅋㅋ", "ㅋㅋㅋ"),
        ("재밌다ㅠㅠㅠㅠ!!", "재밌다ㅠㅠㅠ!!"),
        ("ㅋㅎㅋㅎㅋㅎ", "ㅋㅎㅋ"),
        ("ㅜㅠㅜㅠㅜㅠ 슬퍼", "ㅜㅠㅜ 슬퍼"),
        ("ㄷㄷㄷㄷㄷ", "ㄷㄷㄷ"),
    ],
)
def test_jamo_runs_are_cut(text: str, expected: str) -> None:
    assert applied(JamoRuns(JamoRunOptions(longest=3)), text) == expected


@pytest.mark.parametrize(
    "text", ["ㅋㅋ", "ㅋㅋㅋ", "ㅠㅠ", "ㄱㄴㄷㄹㅁㅂ", "ㅏㅑㅓㅕ", "하하하하", "아아아아", "ㅇㅈ ㄹㅇ"]
)
def test_short_runs_and_syllables_stay(text: str) -> None:
    assert JamoRuns(JamoRunOptions(longest=3))(Page(text)) is None


def test_length() -> None:
    stage = length(LengthOptions(min_characters=3, max_characters=10, min_bytes=10, min_words=2))
    verdicts = [stage(Page(text)) for text in ("가", "가" * 11, "abc", "가나다라", "가나 다라")]
    assert verdicts == [Dropped("short"), Dropped("long"), Dropped("few_bytes"), Dropped("few_words"), None]


def test_lines() -> None:
    rules = LineRules(LineOptions(min_characters=5, ends=(".", "?", "]", '"'), max_word_share=0.3))
    text = "첫째 줄은 좋은 문장이다.\n짧다.\n\n끝이 없는 줄은 나간다\n또 또 또 같은 말.\n마지막 줄도 참 좋은가?"
    removed = {"short_line": 1, "no_final_mark": 1, "repeated_word": 1}
    assert rules(Page(text)) == Changed("첫째 줄은 좋은 문장이다.\n\n마지막 줄도 참 좋은가?", removed)


def test_blocklist(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# 도박\n토토\n카지노사이트\n", encoding="utf-8")
    stage = blocklist(BlocklistOptions(phrases=("카지노",), file=words))
    assert stage(Page("온라인 카지노에서")) == Dropped("listed: 카지노")
    assert stage(Page("카지노사이트")) == Dropped("listed: 카지노사이트")
    assert stage(Page("카드 놀이")) is None
    assert blocklist(BlocklistOptions(phrases=("is",), whole_words=True))(Page("this")) is None
    assert blocklist(BlocklistOptions(phrases=("가",), min_hits=2))(Page("가 나")) is None
    lines = blocklist(BlocklistOptions(phrases=("토토",), remove="lines"))
    assert lines(Page("가\n토토 광고\n나")) == Changed("가\n나", {"listed: 토토": 1})
    with pytest.raises(DataError, match="without phrases"):
        blocklist(BlocklistOptions())


@given(
    st.lists(st.text("가나다.*a", min_size=1, max_size=4), min_size=1, max_size=20), st.text("가나다.*a ", max_size=30)
)
def test_the_block_list_finds_what_is_there(phrases: list[str], text: str) -> None:
    found = blocklist(BlocklistOptions(phrases=tuple(phrases)))(Page(text))
    assert (found is not None) == any(unicodedata.normalize("NFC", phrase) in text for phrase in phrases)


@pytest.mark.parametrize(
    ("sentence", "level"),
    [
        ("오늘은 날씨가 좋습니다.", "존댓말"),
        ("어디에 가세요?", "존댓말"),
        ("정말 재미있었어요!!", "존댓말"),
        ("그렇죠ㅎㅎ", "존댓말"),
        ("함께 가십시다.", "존댓말"),
        ("제가 할게요~", "존댓말"),
        ("물은 100도에서 끓는다.", "문어체"),
        ("그는 학교에 갔다.", "문어체"),
        ("회의 결과를 보고함", "문어체"),
        ("그것은 진실인가?", "문어체"),
        ("뭐 해?", "반말"),
        ("나 지금 집에 가고 있어", "반말"),
        ("진짜 재밌네ㅋㅋㅋ", "반말"),
        ("같이 가자!", "반말"),
        ("그거 내 거야", "반말"),
        ("서울특별시", None),
        ("Hello.", None),
    ],
)
def test_speech_level_of_a_sentence(sentence: str, level: str | None) -> None:
    assert sentence_level(sentence) == level


def test_speech_level_of_a_text() -> None:
    stage = SpeechLevel(SpeechLevelOptions())
    assert stage(Page("안녕하세요. 반갑습니다. 물은 끓는다.")) == Noted({"speech_level": "존댓말"})
    assert stage(Page("안녕하세요. 뭐 해?")) == Noted({"speech_level": "혼합"})
    assert stage(Page("서울 부산 대구")) == Noted({"speech_level": "없음"})


def test_real_texts_have_their_level(shared_data: Path) -> None:
    """Answers of a polite chatbot, and a translated manual in polite style."""
    stage, counts = SpeechLevel(SpeechLevelOptions()), {}
    for name, key in (("chatbot_pairs", "output"), ("tech_docs_ko", "text")):
        with gzip.open(shared_data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            verdicts = [stage(Page(json.loads(line)[key])) for line in lines]
        levels = [verdict.fields["speech_level"] for verdict in verdicts]
        counts[name] = levels.count("존댓말") / len(levels)
    assert counts["chatbot_pairs"] > 0.9 and counts["tech_docs_ko"] > 0.6, counts


def test_sentences() -> None:
    assert sentences("값은 3.5이다. 그런가? “네.” 끝…\n다음") == ["값은 3.5이다.", "그런가?", "“네.", "끝…", "다음"]
