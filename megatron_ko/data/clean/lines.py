"""Remove lines that are not sentences: too short, without a final mark, or one word over and over."""

from collections import Counter

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, StageKind


class LineOptions(Section):
    """What a line needs to stay; null switches a rule off. Blank lines stay."""

    min_characters: int | None = Field(None, ge=0, description="Code points, at least.")
    min_bytes: int | None = Field(None, ge=0, description="Bytes in UTF-8, at least.")
    ends: tuple[str, ...] | None = Field(None, description="Marks of which the line must end with one.")
    max_word_share: float | None = Field(None, gt=0, description="Share of the most frequent word, at most.")


class LineRules:
    """The stage; the first rule that a line breaks is the reason."""

    def __init__(self, options: LineOptions) -> None:
        self._options = options

    def __call__(self, page: Page) -> Changed | None:
        """Remove lines. If none is left, the text is blank, and the pipeline drops it."""
        removed: Counter[str] = Counter()
        kept = []
        for line in page.lines:
            reason = self._judge(line) if line and not line.isspace() else None
            if reason is None:
                kept.append(line)
            else:
                removed[reason] += 1
        return Changed("\n".join(kept).strip("\n"), removed) if removed else None

    def _judge(self, line: str) -> str | None:
        options = self._options
        if options.min_characters is not None and len(line) < options.min_characters:
            return "short_line"
        if options.min_bytes is not None and len(line.encode("utf-8", "surrogatepass")) < options.min_bytes:
            return "few_bytes_in_line"
        if options.ends is not None and not line.rstrip().endswith(options.ends):
            return "no_final_mark"
        if options.max_word_share is not None:
            words = line.split()
            if Counter(words).most_common(1)[0][1] / len(words) > options.max_word_share:
                return "repeated_word"
        return None


KIND = StageKind(LineOptions, LineRules)
