"""Texts that are too short to teach anything, or too long to be one text."""

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Filter, Rule, StageKind


class LengthOptions(Section):
    """Limits; null switches a rule off."""

    min_characters: int | None = Field(None, ge=0, description="Code points, at least.")
    max_characters: int | None = Field(None, ge=1, description="... and at most.")
    min_bytes: int | None = Field(None, ge=0, description="Bytes in UTF-8, at least; a Hangul syllable has 3.")
    min_words: int | None = Field(None, ge=0, description="Words of the pipeline's splitter, at least.")


def length(options: LengthOptions) -> Filter[Page]:
    """The filter."""
    return Filter(
        lambda page: page,
        [
            Rule("short", lambda page: len(page.text), low=options.min_characters),
            Rule("long", lambda page: len(page.text), high=options.max_characters),
            Rule("few_bytes", lambda page: len(page.text.encode("utf-8", "surrogatepass")), low=options.min_bytes),
            Rule("few_words", lambda page: len(page.words), low=options.min_words),
        ],
    )


KIND = StageKind(LengthOptions, length)
