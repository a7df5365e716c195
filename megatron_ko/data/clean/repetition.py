"""Gopher's repetition rules: repeated paragraphs, lines and word n-grams."""

import re
from collections.abc import Callable
from functools import cached_property, partial

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.duplicates import WordNgrams, repeated
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Filter, Rule, StageKind

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


class RepetitionOptions(Section):
    """Largest shares that may be repetition; null switches a rule off. Defaults: Gopher, table A1."""

    duplicate_paragraphs: float | None = Field(0.3, ge=0, description="Paragraphs that occurred before.")
    duplicate_paragraph_characters: float | None = Field(0.2, ge=0, description="Their share of all characters.")
    duplicate_lines: float | None = Field(0.3, ge=0, description="Lines that occurred before.")
    duplicate_line_characters: float | None = Field(0.2, ge=0, description="Their share of all characters.")
    top_ngrams: dict[int, float] = Field(
        {2: 0.2, 3: 0.18, 4: 0.16}, description="By n: characters of the most frequent n-gram, all occurrences."
    )
    duplicate_ngrams: dict[int, float] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
        description="By n: characters of n-grams that occurred before.",
    )


class Repetition:
    """What the rules measure, each quantity at most once a page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.characters = len(page.text)

    @cached_property
    def paragraphs(self) -> tuple[float, float]:
        """Share of paragraphs that occurred before, and of characters in them."""
        return self._shares(_PARAGRAPHS.split(self._page.text.strip()))

    @cached_property
    def lines(self) -> tuple[float, float]:
        """Share of lines that occurred before, and of characters in them."""
        return self._shares(_LINES.split(self._page.text))

    @cached_property
    def grams(self) -> WordNgrams:
        """The n-grams of its words."""
        return WordNgrams(self._page.words)

    def _shares(self, elements: list[str]) -> tuple[float, float]:
        number, characters = repeated(elements)
        return number / len(elements), characters / self.characters


def repetition(options: RepetitionOptions) -> Filter[Repetition]:
    """The filter; rules stand in datatrove's order."""
    return Filter(
        Repetition,
        [
            Rule("duplicate_paragraphs", lambda v: v.paragraphs[0], high=options.duplicate_paragraphs),
            Rule(
                "duplicate_paragraph_characters",
                lambda v: v.paragraphs[1],
                high=options.duplicate_paragraph_characters,
            ),
            Rule("duplicate_lines", lambda v: v.lines[0], high=options.duplicate_lines),
            Rule("duplicate_line_characters", lambda v: v.lines[1], high=options.duplicate_line_characters),
            *(_ngram_rule("top", n, high) for n, high in options.top_ngrams.items()),
            *(_ngram_rule("duplicate", n, high) for n, high in options.duplicate_ngrams.items()),
        ],
    )


def _ngram_rule(kind: str, n: int, high: float) -> Rule[Repetition]:
    exact, bound = (
        (WordNgrams.top, WordNgrams.top_at_most) if kind == "top" else (WordNgrams.again, WordNgrams.again_at_most)
    )
    share = partial(_share, n=n)
    return Rule(f"{kind}_{n}_gram", partial(share, count=exact), high=high, bound=partial(share, count=bound))


def _share(view: Repetition, n: int, count: Callable[[WordNgrams, int], float]) -> float:
    return count(view.grams, n) / view.characters


KIND = StageKind(RepetitionOptions, repetition)
