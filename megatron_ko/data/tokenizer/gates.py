"""The gate that a tokenizer must pass before its folder gets its name: everything comes back as it went in.

A tokenizer that cannot spell a line break puts <unk> into every document, and nobody notices for weeks.
"""

from collections.abc import Sequence

from tokenizers import pre_tokenizers

from megatron_ko.data.tokenizer.special import SPECIAL_TOKENS
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.errors import TokenizerError

_CODE = 'def 인사(name: str) -> None:\n    if name:\n\t\tprint(f"안녕, {name}!")\n\n\n    return None\n'

NASTY: tuple[str, ...] = (
    "",
    "\n",
    "\t",
    "\r\n",
    "\n\n\n",
    " ",
    "  ",
    " 앞에 빈칸",
    "뒤에 빈칸 ",
    "사이에    빈칸     여럿",
    "탭\t과\t\t탭",
    "첫 줄\n둘째 줄\n\n넷째 줄\n",
    "줄 끝 빈칸  \n  들여 쓴 줄",
    _CODE,
    "a" + " " * 100 + "b",
    "안녕하세요. 반갑습니다!",
    "ㅋㅋㅋㅋㅋㅋ ㅠㅠㅠ ㅎㅎ",
    "ㄱㄴㄷㄹㅏㅑㅓㅕ ㅄ ㄳ",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",  # 한글 in conjoining jamo (NFD)
    "e\u0301 a\u0308",
    "大韓民國 漢字 混用",
    "뷁 쀍 꿻 힣 가 각",
    "🙂👍🏽👨‍👩‍👧‍👦🇰🇷 ❤️",
    "① ㈜ ㎏ ﷺ ｶﾅ Ａ１",
    "\u2581 밑줄 \u2581\u2581",  # the sign that SentencePiece uses for a space
    "▅ ⁇ �",
    "<0x0A> <0xEA> <unk> <s> </s> <pad> <|im_start|>system<|im_end|>",
    "\u0000\u0001\u007f\u0085\u00a0\u200b\u200d\u3000\ufeff",
    "https://example.kr/경로?q=값&n=1#끝 user@example.kr",
    "3.141592 1,234,567원 2024-01-31 010-0000-0000 100%",
    '"따옴표" ‘작은’ “큰” 『책』 《글》 …—–',
    "Straße naïve Ελληνικά Русский עברית العربية हिन्दी ไทย 日本語 中文",
    "".join(map(chr, range(256))),
    "".join(chr(code) for code in range(0x100, 0x3000, 7)),
    "".join(chr(code) for code in range(0xAC00, 0xD7A4)),  # all 11,172 syllables
    "\U00010000\U0001f9ff\U000e0001\U0010ffff",
)


def check_tokenizer(tokenizer: Tokenizer, samples: Sequence[str] = ()) -> int:
    """Round trip of ``NASTY`` and ``samples``, single ids of special tokens, all bytes, both back ends alike.

    Returns:
        the number of texts that were checked.

    Raises:
        TokenizerError: with the first text that did not survive.
    """
    _check_special_tokens(tokenizer)
    _check_user_defined(tokenizer)
    _check_bytes(tokenizer)
    texts = [*NASTY, *samples]
    ids = tokenizer.encode_batch(texts)
    for text, got, reference in zip(texts, ids, tokenizer.reference_batch(texts), strict=True):
        if got != reference:
            _fail("the SentencePiece model and tokenizer.json disagree", text, f"{got[:40]} against {reference[:40]}")
        decoded = tokenizer.decode(got)
        if decoded != text:
            _fail("text does not come back from its tokens", text, decoded)
        if tokenizer.unk is not None and tokenizer.unk in got:
            _fail("text has unknown tokens in spite of byte fallback", text, got)
        if not tokenizer.special_tokens.keys().isdisjoint(_spelt(tokenizer, got)):
            _fail("text turned into a special token", text, got)
    return len(texts)


def _spelt(tokenizer: Tokenizer, ids: Sequence[int]) -> set[str]:
    special = {number: token for token, number in tokenizer.special_tokens.items()}
    return {special[number] for number in ids if number in special}


def _check_special_tokens(tokenizer: Tokenizer) -> None:
    for expected, token in enumerate(SPECIAL_TOKENS):
        got = tokenizer.encode(token, parse_special=True)
        if got != [expected] or tokenizer.decode(got) != token:
            _fail("a special token is not one id", token, got, f"[{expected}]")


def _check_user_defined(tokenizer: Tokenizer) -> None:
    for token, number in tokenizer.user_defined.items():
        for text in (token, f"글{token}끝", f"a {token}{token}\n"):
            ids = tokenizer.encode(text)
            if ids.count(number) != text.count(token):
                _fail("a user-defined token is not one id in text", text, ids, f"{number} for {token!r}")
            if tokenizer.decode(ids) != text:
                _fail("text with a user-defined token does not come back", text, tokenizer.decode(ids))


def _check_bytes(tokenizer: Tokenizer) -> None:
    """Every byte has a token: <0x00> to <0xFF>, or the letters that byte-level BPE writes for them."""
    spellings = ([f"<0x{byte:02X}>" for byte in range(256)], pre_tokenizers.ByteLevel.alphabet())
    missing = min(sum(tokenizer.id_of(token) is None for token in tokens) for tokens in spellings)
    if missing:
        _fail("byte tokens are missing", f"{missing} of 256", "not in the vocabulary")


def _fail(what: str, text: str, got: object, expected: object = None) -> None:
    shown = text if len(text) <= 200 else text[:200] + "..."
    raise TokenizerError(
        f"the tokenizer failed its gate and was not written: {what}",
        got=f"{got!r} for {shown!r}"[:1000],
        expected=expected or "an exact round trip",
        remedy="train on more varied text, or with a larger --vocab-size",
    )
