"""The text of one document on its way through the pipeline, with the views of it that several stages share."""

from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType

# Text to its words; see words.py.
Splitter = Callable[[str], list[str]]


class Page:
    """One text and its lazily made views. A changed text is a new page.

    Attributes:
        text: never changed in place.
        fields: of the document's record.
        words: of the pipeline's splitter.
        lines: between line feeds, blank ones included.
    """

    def __init__(
        self, text: str, splitter: Splitter = str.split, fields: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        self.text, self.fields = text, fields
        self._splitter = splitter

    @cached_property
    def words(self) -> list[str]:
        return self._splitter(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    def changed(self, text: str) -> "Page":
        """A page of another text with the same splitter and fields."""
        return Page(text, self._splitter, self.fields)
