"""What counts as the same text. Steps are named one by one; Hangul is composed, never taken apart."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ko.errors import DataError

STEPS = ("nfc", "case", "space", "punctuation")
_NO_WORD = re.compile(r"[^\w\s]+|_+")


@dataclass(frozen=True)
class Normalisation:
    """How texts are made comparable. Only comparisons see the result; what is written is the text as it was.

    Attributes:
        steps: some of "nfc" (canonical composition), "case" (lower case), "space" (runs of white space become one
            blank, none at the ends), "punctuation" (everything but letters, digits and white space becomes a blank).
    """

    steps: frozenset[str] = frozenset({"nfc", "space"})

    def __call__(self, text: str) -> str:
        """The comparable form of ``text``."""
        if "nfc" in self.steps and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        if "case" in self.steps:
            text = text.lower()
        if "punctuation" in self.steps:
            text = _NO_WORD.sub(" ", text)
        if "space" in self.steps:
            text = " ".join(text.split())
        return text

    def __str__(self) -> str:
        return ",".join(step for step in STEPS if step in self.steps) or "none"


def parse_normalisation(names: Sequence[str]) -> Normalisation:
    """From the names of steps; "none" alone compares texts as they are.

    Raises:
        DataError: an unknown step.
    """
    wanted = frozenset(names) - {"none"}
    if unknown := wanted - set(STEPS):
        raise DataError(
            "unknown step of normalisation",
            got=", ".join(sorted(unknown)),
            expected=f"some of {', '.join(STEPS)}, or none",
            remedy="--normalise nfc,space",
        )
    return Normalisation(wanted)
