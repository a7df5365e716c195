"""Drop documents, or only lines, that contain a listed phrase."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.stage import Changed, Dropped, Stage, StageKind
from megatron_ko.errors import DataError

# With more phrases than this, reports count them together.
_NAMED = 100


class BlocklistOptions(Section):
    """What is listed. Phrases match anywhere, because Korean puts particles behind words: 카지노 finds 카지노에서."""

    phrases: tuple[str, ...] = Field((), description="Phrases.")
    file: Path | None = Field(None, description="More phrases, one a line; lines that begin with '#' are comments.")
    whole_words: bool = Field(False, description="A phrase counts only where no letter or digit is before or after it.")
    min_hits: int = Field(1, ge=1, description="Occurrences that a document needs to be dropped.")
    remove: Literal["document", "lines"] = Field("document", description="What goes.")


def blocklist(options: BlocklistOptions) -> Stage:
    """The stage.

    Raises:
        DataError: nothing is listed, or the file cannot be read.
    """
    given = {*options.phrases, *(read_list(options.file) if options.file else ())}
    phrases = sorted(unicodedata.normalize("NFC", phrase) for phrase in given)
    if not all(phrases) or not phrases:
        raise DataError("a block list without phrases", got=str(options), expected="phrases, or a file of them")
    pattern = _trie(phrases)
    listed = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)" if options.whole_words else pattern)
    name = "listed: {}" if len(phrases) <= _NAMED else "listed"
    return _Documents(listed, name, options.min_hits) if options.remove == "document" else _Lines(listed, name)


class _Documents:
    def __init__(self, listed: "re.Pattern[str]", name: str, min_hits: int) -> None:
        self._listed, self._name, self._min_hits = listed, name, min_hits

    def __call__(self, page: Page) -> Dropped | None:
        first = self._listed.search(page.text)
        if first is None or (self._min_hits > 1 and len(self._listed.findall(page.text)) < self._min_hits):
            return None
        return Dropped(self._name.format(first.group()))


class _Lines:
    def __init__(self, listed: "re.Pattern[str]", name: str) -> None:
        self._listed, self._name = listed, name

    def __call__(self, page: Page) -> Changed | None:
        if self._listed.search(page.text) is None:
            return None
        kept, removed = [], Counter[str]()
        for line in page.lines:
            found = self._listed.search(line)
            if found is None:
                kept.append(line)
            else:
                removed[self._name.format(found.group())] += 1
        return Changed("\n".join(kept).strip("\n"), removed) if removed else None


def read_list(path: Path) -> list[str]:
    """The lines of a file, without comments and blank ones.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the block list {path} cannot be read", got=str(error), remedy="a UTF-8 text file") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _trie(phrases: Iterable[str]) -> str:
    """One pattern for all phrases, with common beginnings once: the search then looks at the first letters only."""
    branches: dict[str, list[str]] = {}
    for phrase in phrases:
        branches.setdefault(phrase[:1], []).append(phrase[1:])
    ends = "" in branches
    branches.pop("", None)
    parts = [re.escape(letter) + _trie(rest) for letter, rest in branches.items()]
    if not parts:
        return ""
    body = parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
    return f"(?:{body})?" if ends else body


KIND = StageKind(BlocklistOptions, blocklist)
