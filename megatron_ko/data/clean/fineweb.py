"""FineWeb's quality rules (https://arxiv.org/abs/2406.17557, section 3.6), which FineWeb-2 tuned for each language."""

import math

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.duplicates import repeated
from megatron_ko.data.clean.marks import TERMINAL
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Filter, Rule, StageKind


class FinewebOptions(Section):
    """Limits over lines that are not blank; null switches a rule off. Defaults: FineWeb's, for English text."""

    min_punctuated_lines: float | None = Field(0.12, ge=0, description="Share of lines that end with a final mark.")
    line_punct_exclude_zero: bool = Field(
        False, description="Keep a text of which no line ends with one: it has no such marks, as many petitions have."
    )
    max_short_lines: float | None = Field(0.67, ge=0, description="Share of short lines.")
    short_line: int = Field(30, ge=0, description="Characters of a short line, at most.")
    max_duplicate_characters: float | None = Field(0.01, ge=0, description="Share of characters in repeated lines.")
    max_line_breaks: float | None = Field(0.3, ge=0, description="Line feeds per word: lists have many.")


class Lines:
    """What the rules measure, over the lines that are not blank."""

    def __init__(self, page: Page, short_line: int) -> None:
        self._page, self._short_line = page, short_line
        self.lines = [line for line in page.lines if line and not line.isspace()]

    @property
    def punctuated(self) -> float:
        """Share of lines that end with a final mark, in any script."""
        return sum(line[-1] in TERMINAL for line in self.lines) / len(self.lines)

    @property
    def short(self) -> float:
        """Share of short lines."""
        return sum(len(line) <= self._short_line for line in self.lines) / len(self.lines)

    @property
    def duplicates(self) -> float:
        """Share of characters that stand in lines that occurred before."""
        text = self._page.text
        return repeated(self.lines)[1] / (len(text) - text.count("\n"))

    @property
    def breaks(self) -> float:
        """Line feeds per word."""
        return self._page.text.count("\n") / max(1, len(self._page.words))


def fineweb(options: FinewebOptions) -> Filter[Lines]:
    """The filter; rules stand in datatrove's order."""

    def punctuated(lines: Lines) -> float:
        share = lines.punctuated
        return math.nan if options.line_punct_exclude_zero and not share else share

    return Filter(
        lambda page: Lines(page, options.short_line),
        [
            Rule("few_punctuated_lines", punctuated, low=options.min_punctuated_lines),
            Rule("short_lines", lambda v: v.short, high=options.max_short_lines),
            Rule("duplicate_characters", lambda v: v.duplicates, high=options.max_duplicate_characters),
            Rule("line_breaks", lambda v: v.breaks, high=options.max_line_breaks),
        ],
    )


KIND = StageKind(FinewebOptions, fineweb)
