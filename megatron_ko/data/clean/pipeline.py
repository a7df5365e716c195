"""Documents through the stages of a pipeline, one by one; what happens to each of them is tallied."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace

from megatron_ko.data.clean.config import CleanConfig
from megatron_ko.data.clean.page import Page
from megatron_ko.data.clean.registry import STAGES
from megatron_ko.data.clean.stage import Changed, Dropped, Filter, Measure, Noted, Stage
from megatron_ko.data.clean.tally import Tally
from megatron_ko.data.clean.unicode import UnicodeOptions
from megatron_ko.data.clean.words import splitter
from megatron_ko.data.text.documents import Document

# Reason of any stage that leaves nothing but white space.
EMPTY = "empty"


class Pipeline:
    """The stages of a configuration, ready to work.

    Raises:
        DataError: a stage needs a package or a file that is not there.
    """

    def __init__(self, config: CleanConfig) -> None:
        self._splitter = splitter(config.words)
        self.stages: list[tuple[str, Stage]] = [
            (stage.name, STAGES[stage.kind].build(stage.options)) for stage in config.stages
        ]
        self._composed = any(isinstance(s.options, UnicodeOptions) and s.options.nfc for s in config.stages)

    def tally(self) -> Tally:
        """An empty tally of these stages."""
        return Tally(name for name, _ in self.stages)

    def run(self, documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        """The documents that are kept, as they leave the last stage."""
        for document in documents:
            if (kept := self.clean(document, tally)) is not None:
                yield kept

    def clean(self, document: Document, tally: Tally) -> Document | None:
        """One document through all stages, or None."""
        tally.taken.add(document.text)
        page = Page(document.text, self._splitter, document.fields)
        origin = (document.source, document.position)
        notes: dict[str, object] = {}
        for name, stage in self.stages:
            verdict = stage(page)
            if verdict is None:
                continue
            if isinstance(verdict, Noted):
                notes |= verdict.fields
            elif isinstance(verdict, Changed):
                text = self._normal(verdict.text)
                if not text or text.isspace():
                    verdict = Dropped(EMPTY)
                else:
                    tally.change(name, verdict.counts, (page.text, text), origin)
                    page = page.changed(text)
            if isinstance(verdict, Dropped):
                tally.drop(name, verdict.reason, page.text, origin)
                return None
        tally.kept.add(page.text)
        tally.note(notes)
        return replace(document, text=page.text, fields={**document.fields, **notes})

    def measures(self, document: Document) -> list[tuple[str, Measure]]:
        """Every rule's value, each on the text that its stage would see if no earlier one dropped the document."""
        page = Page(document.text, self._splitter, document.fields)
        found: list[tuple[str, Measure]] = []
        for name, stage in self.stages:
            if isinstance(stage, Filter):
                found += [(name, measure) for measure in stage.measures(page)]
            elif isinstance(verdict := stage(page), Changed) and verdict.text and not verdict.text.isspace():
                page = page.changed(self._normal(verdict.text))
        return found

    def _normal(self, text: str) -> str:
        """Compose again after a change, in a pipeline that composes: a cut can join a letter and a combining mark."""
        if self._composed and not unicodedata.is_normalized("NFC", text):
            return unicodedata.normalize("NFC", text)
        return text
