"""C4's rules (https://jmlr.org/papers/volume21/20-074/20-074.pdf): lines that are no sentences go, then short pages."""

import re
from collections import Counter

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, Dropped, StageKind
from megatron_ko.data.clean.words import sentences

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_END = (".", "?", "!", '"', "'")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class C4Options(Section):
    """Defaults: C4's own."""

    remove_citations: bool = Field(True, description="Remove marks like [3] and [citation needed].")
    terminal_punctuation: bool = Field(True, description="Keep only lines that end with . ? ! \" ' and not with '...'.")
    min_words_per_line: int | None = Field(3, ge=0, description="Remove lines with fewer words.")
    max_word: int | None = Field(1000, ge=1, description="Remove lines with a longer word.")
    min_sentences: int | None = Field(5, ge=0, description="Drop documents with fewer sentences in what is left.")
    lorem_ipsum: bool = Field(True, description="Drop documents with 'lorem ipsum'.")
    javascript: bool = Field(True, description="Remove lines with 'javascript'.")
    curly_bracket: bool = Field(True, description="Drop documents with '{': code.")
    policy: bool = Field(True, description="Remove lines about cookies and terms of use.")
    policy_phrases: tuple[str, ...] = Field(_POLICY, description="What such a line says, in lower case.")


class C4:
    """The stage. Lines are stripped of the space around them, as in the reference."""

    def __init__(self, options: C4Options) -> None:
        self._options = options

    def __call__(self, page: Page) -> Changed | Dropped | None:
        """Remove lines, then judge what is left."""
        options, kept, removed = self._options, [], Counter[str]()
        number = 0
        for raw in page.text.splitlines():
            line = raw.strip()
            words = line.split()
            if options.max_word is not None and any(len(word) > options.max_word for word in words):
                removed["long_word"] += 1
                continue
            if options.remove_citations and "[" in line:
                line, marks = _CITATION.subn("", line)
                removed["citation"] += marks
            reason, whole = self._judge(line, len(words))
            if whole:
                return Dropped(reason)
            if reason:
                removed[reason] += 1
                continue
            if options.min_sentences is not None:
                number += len(sentences(line))
            kept.append(line)
        if options.min_sentences is not None and number < options.min_sentences:
            return Dropped("few_sentences")
        text = "\n".join(kept).strip()
        return None if text == page.text else Changed(text, +removed or {"stripped": 1})

    def _judge(self, line: str, words: int) -> tuple[str, bool]:
        """The reason against a line, or "", and whether it ends the whole document."""
        options = self._options
        if options.terminal_punctuation and (not line.endswith(_END) or line.endswith("...")):
            return "no_final_mark", False
        if options.min_words_per_line is not None and words < options.min_words_per_line:
            return "few_words", False
        lowered = line.lower()
        if options.lorem_ipsum and "lorem ipsum" in lowered:
            return "lorem_ipsum", True
        if options.javascript and "javascript" in lowered:
            return "javascript", False
        if options.curly_bracket and "{" in line:
            return "curly_bracket", True
        if options.policy and any(phrase in lowered for phrase in options.policy_phrases):
            return "policy", False
        return "", False


KIND = StageKind(C4Options, C4)
