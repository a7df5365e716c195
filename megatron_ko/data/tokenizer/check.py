"""Checks of the tokenizer in any Hugging Face folder, to pass before a token of it is written."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ko.data.tokenizer.gates import NASTY
from megatron_ko.data.tokenizer.tokenizer import TRANSFORMERS_CONFIG, Tokenizer, load_tokenizer
from megatron_ko.data.tokenizer.unencodable import hexadecimal, missing_bytes
from megatron_ko.errors import TokenizerError
from megatron_ko.storage.open_json import JsonObject

_SYLLABLES = [chr(code) for code in range(0xAC00, 0xD7A4)]
_CODE = (
    "def f(x):\n    if x:\n        return [\n            x\n        ]\n",
    "class A {\n\tint b;\n\n\t\tvoid c() {\r\n\t\t}\r\n}\n",
    "make:\n\tcc -O2 \\\n\t  main.c\n",
    "a\n\n\n\n    b\n \n  \n   c",
)
# Every text must come back as it went in.
_ALONE, _AFTER_SPACE = "every syllable alone", "every syllable after a space"
SUITES: dict[str, tuple[str, ...]] = {
    "line breaks and tabs": ("\n", "\t", "\r\n", "\n\n\n", "탭\t과\t\t탭", "첫 줄\n둘째 줄\n\n넷째 줄\n", "가\n\n\t나"),
    "spaces": (" ", "  ", " 앞", "뒤 ", "가    나     다", "a" + " " * 100 + "b", "\u3000전각\u00a0빈칸"),
    "code": _CODE,
    "emoji": (
        "\U0001f642",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 가족",
        "\U0001f44d\U0001f3fd",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f1f0\U0001f1f7",
        "1\ufe0f\u20e3",
        "한\U0001f469\U0001f3fb\u200d\U0001f4bb글",
    ),
    "jamo": ("ㅋㅋㅋ ㅠㅠ ㅎㅎ", "ㄱㄴㄷㄹㅏㅑㅓㅕ ㅄ ㄳ", "".join(map(chr, range(0x3131, 0x318F)))),
    "hanja": ("大韓民國 漢字 金(김)", "\uf900\ufa0b 樂(낙)", "𠮷𡈽"),
    "decomposed (NFD)": ("\u1112\u1161\u11ab\u1100\u1173\u11af", "e\u0301", "".join(map(chr, range(0x1100, 0x1200)))),
    "compatibility forms": ("① ㈜ ㎏ ﷺ ｶﾅ Ａ１", "ﬁ ½ ℃ Ⅷ"),
    "digits": ("3.141592 1,234,567원", "0123456789", "2024-01-31 010-0000-0000"),
    "control characters": ("".join(map(chr, range(0x20))), "\x7f\x85\u200b\u200d\ufeff", "�"),
    "spelt-out special tokens": ("<unk> <s> </s> <pad> <0x0A>", "<|im_start|>system<|im_end|>", "<|endoftext|>"),
    "the suite of training": NASTY,
    _ALONE: tuple(_SYLLABLES),
    _AFTER_SPACE: tuple(" " + syllable for syllable in _SYLLABLES),
}  # fmt: skip
_CODES = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 97)]
_EVERY = tuple("".join(map(chr, _CODES[start : start + 64])) for start in range(0, len(_CODES), 64))
# Pairs of texts that a normaliser would make equal.
_DIFFERENT = (
    ("가", "\u1100\u1161"),
    ("ㅋ", "\u110f"),
    ("①", "1"),
    ("㈜", "(주)"),
    ("Ａ", "A"),
    ("é", "e\u0301"),
    ("\uf900", "\u8c48"),
    ("a  b", "a b"),
    ("A", "a"),
    (" 가", "가"),
    ("\r\n", "\n"),
)
# What looks like a border in a chat template.
MARKER = re.compile(r"<\|[^|<>]+\|>|</?s>")


@dataclass(frozen=True)
class CheckResult:
    """One check: how many things were tried, how many failed, and the first that did."""

    name: str
    tried: int
    failed: int
    example: str = ""

    @property
    def ok(self) -> bool:
        """Whether something was tried, and nothing failed."""
        return self.tried > 0 and not self.failed


def check_folder(folder: Path, samples: Sequence[str] = ()) -> list[CheckResult]:
    """Every check on a Hugging Face folder with a tokenizer.json.

    Args:
        folder: of any origin.
        samples: texts that must survive too.
    """
    try:
        tokenizer, again = load_tokenizer(folder), load_tokenizer(folder)
    except TokenizerError as error:
        return [CheckResult("the folder loads", 1, 1, str(error))]
    suites = SUITES | {"every character": _EVERY} | ({"your documents": tuple(samples)} if samples else {})
    texts = [text for name, suite in suites.items() if name != "every character" for text in suite]
    return [
        CheckResult("the folder loads", 1, 0),
        *(_round_trip(tokenizer, name, suite) for name, suite in suites.items()),
        _no_unknown(tokenizer, [*texts, *_EVERY]),
        _bytes(tokenizer),
        _nothing_normalised(tokenizer),
        _deterministic(tokenizer, again, texts),
        _special_tokens(tokenizer),
        _text_is_text(tokenizer),
        _chat_markers(folder, tokenizer),
        *([_user_defined(tokenizer)] if tokenizer.user_defined else []),
        *_transformers(folder, tokenizer, _in_few_texts(suites)),
    ]


def result_of(name: str, tried: int, failures: Iterable[str]) -> CheckResult:
    """A check of ``tried`` things and what failed."""
    found = list(failures)
    return CheckResult(name, tried, len(found), found[0] if found else "")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _round_trip(tokenizer: Tokenizer, name: str, texts: Sequence[str]) -> CheckResult:
    decoded = (tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts))
    pairs = zip(texts, decoded, strict=True)
    failures = (f"{_shown(text)} comes back as {_shown(got)}" for text, got in pairs if got != text)
    return result_of(f"round trip: {name}", len(texts), failures)


def _no_unknown(tokenizer: Tokenizer, texts: Sequence[str]) -> CheckResult:
    pairs = zip(texts, tokenizer.encode_batch(texts), strict=True)
    # Some folders name a token of another use as the unknown one; byte-level BPE never gives it.
    failures = (_shown(text) for text, ids in pairs if tokenizer.unk is not None and tokenizer.unk in ids)
    return result_of("no unknown tokens", len(texts), failures)


def _bytes(tokenizer: Tokenizer) -> CheckResult:
    missing = missing_bytes(tokenizer)
    return CheckResult(
        "every byte has a token", 256, len(missing), f"none for {hexadecimal(missing)}" if missing else ""
    )


def _nothing_normalised(tokenizer: Tokenizer) -> CheckResult:
    same = (f"{a!r} and {b!r} become one" for a, b in _DIFFERENT if tokenizer.encode(a) == tokenizer.encode(b))
    return result_of("no normalisation", len(_DIFFERENT), same)


def _deterministic(tokenizer: Tokenizer, again: Tokenizer, texts: Sequence[str]) -> CheckResult:
    first, second, reference = tokenizer.encode_batch(texts), again.encode_batch(texts), again.reference_batch(texts)
    failures = (
        _shown(text)
        for text, *several in zip(texts, first, second, reference, strict=True)
        if not several[0] == several[1] == several[2] == tokenizer.encode(text)
    )
    return result_of("the same ids every time, alone and in a batch", len(texts), failures)


def _special_tokens(tokenizer: Tokenizer) -> CheckResult:
    failures = []
    for token, number in tokenizer.special_tokens.items():
        ids = tokenizer.encode(token, parse_special=True)
        if ids != [number] or tokenizer.decode(ids) != token:
            failures.append(f"{token!r} is {ids}, expected [{number}]")
    if tokenizer.eod not in tokenizer.special_tokens.values():
        failures.append(f"the end of a document, id {tokenizer.eod}, is no special token")
    return result_of("special tokens are single ids", len(tokenizer.special_tokens), failures)


def _text_is_text(tokenizer: Tokenizer) -> CheckResult:
    special = set(tokenizer.special_tokens.values())
    names = list(tokenizer.special_tokens)
    failures = (name for name in names if special & set(tokenizer.encode(f"글 {name} 끝")))
    return result_of("text cannot spell a special token", len(names), failures)


def _user_defined(tokenizer: Tokenizer) -> CheckResult:
    failures = []
    for token, number in tokenizer.user_defined.items():
        ids = tokenizer.encode(text := f"글{token}끝")
        if ids.count(number) != 1 or tokenizer.decode(ids) != text:
            failures.append(f"{text!r} is {ids}, and comes back as {tokenizer.decode(ids)!r}")
    return result_of("user-defined tokens are single ids in text", len(tokenizer.user_defined), failures)


def _chat_markers(folder: Path, tokenizer: Tokenizer) -> CheckResult:
    """The borders in the chat template, or those of ChatML where there is none."""
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else ""
    config: JsonObject = json.loads((folder / TRANSFORMERS_CONFIG).read_text(encoding="utf-8"))
    markers = sorted(set(MARKER.findall(text + str(config.get("chat_template") or ""))))
    borders = markers or ["<|im_start|>", "<|im_end|>"]
    failures = []
    for marker in borders:
        ids = tokenizer.encode(marker, parse_special=True)
        if len(ids) != 1 or marker not in tokenizer.special_tokens:
            failures.append(f"{marker!r} is {len(ids)} tokens, not one special id")
    return result_of("chat borders are single ids", len(borders), failures)


def agreement(tokenizer: Tokenizer, folder: Path, oracle: Any = None) -> list[CheckResult]:
    """Whether transformers, reading ``folder``, gives the ids and the text of ``tokenizer`` for every suite.

    Args:
        tokenizer: ours.
        folder: of transformers' tokenizer.
        oracle: that tokenizer; None: as ``AutoTokenizer`` loads the folder.
    """
    return _transformers(folder, tokenizer, _in_few_texts(SUITES | {"every character": _EVERY}), oracle)


def _in_few_texts(suites: dict[str, tuple[str, ...]]) -> list[str]:
    """All texts, syllables by 64 on the lines of one: in transformers a call costs more than its length."""
    texts: list[str] = []
    for name, suite in suites.items():
        if name in (_ALONE, _AFTER_SPACE):
            texts += ("\n".join(suite[start : start + 64]) for start in range(0, len(suite), 64))
        else:
            texts += suite
    return texts


def _transformers(folder: Path, tokenizer: Tokenizer, texts: Sequence[str], oracle: Any = None) -> list[CheckResult]:
    """Token by token, with special tokens parsed and not; a check that cannot run has failed."""
    name = "transformers gives the same ids"
    try:
        from transformers import AutoTokenizer

        oracle = oracle or AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever stops transformers from loading it stops its users too
        return [CheckResult(name, 1, 1, f"not run: {type(error).__name__}: {error}"[:300])]
    oracle.model_max_length = 1 << 40  # else it warns of every long text
    wrong, otherwise = [], []
    plain = oracle(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    special = oracle(list(texts), add_special_tokens=False)["input_ids"]
    for text, ids, got, parsed in zip(texts, tokenizer.encode_batch(texts), plain, special, strict=True):
        if got != ids or parsed != tokenizer.encode(text, parse_special=True):
            wrong.append(f"{_shown(text)}: {_shown(got)} there, {_shown(ids)} here")
        if (back := oracle.decode(ids)) != tokenizer.decode(ids):
            otherwise.append(f"{_shown(text)} comes back as {_shown(back)}")
    if len(oracle) != tokenizer.vocab_size:
        wrong.append(f"{len(oracle)} ids there, {tokenizer.vocab_size} here")
    if oracle.eos_token_id != tokenizer.eod:
        wrong.append(f"a document ends with id {oracle.eos_token_id} there, {tokenizer.eod} here")
    return [result_of(name, len(texts), wrong), result_of("transformers decodes the same text", len(texts), otherwise)]
