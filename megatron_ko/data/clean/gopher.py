"""Gopher's quality rules (https://arxiv.org/abs/2112.11446, section A1.1): words, symbols, bullets, stop words."""

from functools import cached_property
from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.marks import SYMBOLS
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Filter, Rule, StageKind

# The paper's own, for English.
_ENGLISH = ("the", "be", "to", "of", "and", "that", "have", "with")


class GopherOptions(Section):
    """Limits; null switches a rule off. Defaults: the paper's, for English text."""

    min_words: int | None = Field(50, ge=0, description="Words with more than symbols in them, at least.")
    max_words: int | None = Field(100_000, ge=0, description="... and at most.")
    min_average_word: float | None = Field(3, ge=0, description="Characters of such a word on average, at least.")
    max_average_word: float | None = Field(10, ge=0, description="... and at most.")
    max_hashes: float | None = Field(0.1, ge=0, description="'#' per word.")
    max_ellipses: float | None = Field(0.1, ge=0, description="'...' and '…' per word.")
    max_bullet_lines: float | None = Field(0.9, ge=0, description="Share of lines that begin with '•' or '-'.")
    max_ellipsis_lines: float | None = Field(0.3, ge=0, description="Share of lines that end with '...' or '…'.")
    min_alphabetic_words: float | None = Field(0.8, ge=0, description="Share of words with a letter.")
    min_stop_words: int | None = Field(2, ge=0, description="Different stop words that must occur.")
    stop_words: tuple[str, ...] = Field(_ENGLISH, description="Words that any real text of the language has.")
    stop_words_as: Literal["words", "endings"] = Field(
        "words",
        description="'endings': a stop word also counts as the end of an eojeol, which is where Korean particles "
        "stand when words are not split into morphemes.",
    )


class Quality:
    """What the rules measure, each quantity at most once a page."""

    def __init__(self, page: Page, options: GopherOptions) -> None:
        self._page, self._options = page, options

    @cached_property
    def plain_words(self) -> list[str]:
        """Words with something else than symbols in them."""
        only_symbols = SYMBOLS.issuperset
        return [word for word in self._page.words if not only_symbols(word)]

    @property
    def average_word(self) -> float:
        """Characters; NaN without a word."""
        words = self.plain_words
        return sum(map(len, words)) / len(words) if words else float("nan")

    def per_word(self, *marks: str) -> float:
        """Occurrences of the marks per word."""
        number = sum(map(self._page.text.count, marks))
        return number / len(self._page.words) if number else 0.0

    @cached_property
    def _lines(self) -> list[str]:
        return self._page.text.splitlines()

    @property
    def bullet_lines(self) -> float:
        """Share of lines that begin with a bullet."""
        return sum(line.lstrip().startswith(("•", "-")) for line in self._lines) / len(self._lines)

    @property
    def ellipsis_lines(self) -> float:
        """Share of lines that end with an ellipsis."""
        return sum(line.rstrip().endswith(("...", "…")) for line in self._lines) / len(self._lines)

    @property
    def alphabetic_words(self) -> float:
        """Share of words with at least one letter of any script."""
        words = self._page.words
        if not words:
            return 0.0
        return sum(word[0].isalpha() or any(map(str.isalpha, word)) for word in words) / len(words)

    @property
    def stop_words(self) -> int:
        """Different stop words in the text."""
        return self._stop_words(self._page.words)

    @property
    def first_stop_words(self) -> int:
        """Different stop words in its beginning."""
        return self._stop_words(self._page.words[:_BEGINNING])

    def _stop_words(self, words: list[str]) -> int:
        stops = self._options.stop_words
        if self._options.stop_words_as == "words":
            return len(set(words).intersection(stops))
        lengths = {len(stop) for stop in stops}
        ends = {word.rstrip(_AFTER_WORD)[-length:] for length in lengths for word in words}
        return len(ends.intersection(stops))


# Words in which most texts have enough stop words already.
_BEGINNING = 40
_AFTER_WORD = ".,!?\"')]}…。:;”’"


def gopher(options: GopherOptions) -> Filter[Quality]:
    """The filter; rules stand in datatrove's order."""
    o = options
    return Filter(
        lambda page: Quality(page, options),
        [
            Rule("few_words", lambda v: len(v.plain_words), low=o.min_words),
            Rule("many_words", lambda v: len(v.plain_words), high=o.max_words),
            Rule("short_words", lambda v: v.average_word, low=o.min_average_word),
            Rule("long_words", lambda v: v.average_word, high=o.max_average_word),
            Rule("hashes", lambda v: v.per_word("#"), high=o.max_hashes),
            Rule("ellipses", lambda v: v.per_word("...", "…"), high=o.max_ellipses),
            Rule("bullet_lines", lambda v: v.bullet_lines, high=o.max_bullet_lines),
            Rule("ellipsis_lines", lambda v: v.ellipsis_lines, high=o.max_ellipsis_lines),
            Rule("few_letters", lambda v: v.alphabetic_words, low=o.min_alphabetic_words),
            Rule(
                "few_stop_words",
                lambda v: v.stop_words,
                low=o.min_stop_words,
                bound=lambda v: v.first_stop_words,
            ),
        ],
    )


KIND = StageKind(GopherOptions, gopher)
