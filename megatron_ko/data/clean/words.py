"""Text to words and sentences: by white space, or as morphemes of Kiwi where the published rules ask for them."""

import re
from typing import Literal

from megatron_ko.data.clean.page import Splitter
from megatron_ko.errors import DataError

WordSplitting = Literal["eojeol", "kiwi"]

# Kiwi is very slow on long runs of digits; the published pipeline leaves them out as well.
_LONG_NUMBER = re.compile(r"[0-9,]{20,}")
# Of its model "sbg", measured on technical text and on reviews (0.021 and 0.027 MB/s).
KIWI_BYTES_A_SECOND = 25_000
# Later versions come without the model.
_INSTALL = 'pip install "kiwipiepy<0.22"'
_SENTENCE_END = re.compile(r"(?<=[.!?。！？…])[\"'”’」』)\]]*\s+|\n+")


def splitter(words: WordSplitting) -> Splitter:
    """The function that splits text into words.

    Args:
        words: "eojeol" (between white space, fast) or "kiwi" (morphemes, about a hundred times slower).

    Raises:
        DataError: Kiwi is asked for and not installed.
    """
    return str.split if words == "eojeol" else _Kiwi()


def sentences(text: str) -> list[str]:
    """Sentences by their final marks and by line ends; no decimal point ends one."""
    return [part for part in _SENTENCE_END.split(text) if part.strip()]


class _Kiwi:
    """Surface forms of the morphemes, in order; what the analyser reads as blank is left out."""

    def __init__(self) -> None:
        try:
            from kiwipiepy import Kiwi
        except ImportError:
            raise DataError("Kiwi is not installed", got="words: kiwi", remedy=_INSTALL) from None
        try:
            # datatrove's choice for Korean, which the published thresholds were computed with.
            self._kiwi = Kiwi(model_type="sbg", num_workers=1)
        except OSError as error:
            raise DataError("this Kiwi has no model 'sbg'", got=str(error), remedy=_INSTALL) from None

    def __call__(self, text: str) -> list[str]:
        text = _LONG_NUMBER.sub("", text)
        words = (text[token.start : token.end].strip() for token in self._kiwi.tokenize(text))
        return [word for word in words if word]
