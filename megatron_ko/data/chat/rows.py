"""Conversations to rows: the tokens of a document, and for each token what is trained on it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_ko.data.chat.conversation import Conversation, RecordError
from megatron_ko.data.chat.preference import Response
from megatron_ko.data.tokenizer.chat_template import ASSISTANT, ChatTemplate, NotPrefixError, Rendered, TemplateError
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.data.tokenizer.unencodable import Unencodable
from megatron_ko.data.tokens.marks import Mark

# Which tokens of a conversation are trained: those of all answers, of the last answer, or all.
TrainOn = Literal["assistant", "last", "all"]
# What becomes of a row that is too long: it is left out; it ends with the last answer that fits; it is cut.
TooLong = Literal["drop", "turn", "cut"]


@dataclass(frozen=True)
class RowOptions:
    """How conversations become rows.

    Attributes:
        train_on: which tokens are trained.
        longest: positions that a row may take, which is one less than its tokens; None: any number.
        too_long: what becomes of longer ones.
    """

    train_on: TrainOn = "assistant"
    longest: int | None = None
    too_long: TooLong = "drop"


@dataclass(frozen=True)
class Row:
    """A document.

    Attributes:
        text: as the template spells it, up to the last token.
        ids: [t] tokens.
        marks: [t] uint8, the ``Mark`` of each.
    """

    text: str
    ids: list[int]
    marks: np.ndarray

    @property
    def positions(self) -> int:
        """What it takes in a training sample: every token but the last one predicts the next."""
        return len(self.ids) - 1


class RowEncoder:
    """Encodes conversations as inference sees them: an answer is encoded apart from its prompt.

    Attributes:
        counts: rows that were "split", "cut" or left out as "too long", and answers "encoded apart", which would merge
            with the end of their prompt if both were encoded as one text.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, options: RowOptions) -> None:
        self._tokenizer, self._template, self._options = tokenizer, template, options
        self._unencodable = Unencodable(tokenizer)
        self.counts: Counter[str] = Counter()

    def rows(self, conversation: Conversation) -> list[Row]:
        """The rows of a conversation: one, unless its template spells earlier turns otherwise later.

        Raises:
            RecordError: it cannot be trained on; says why.
        """
        self._check_text(conversation)
        wanted = self._wanted(conversation)
        try:
            whole = self._template.render_answers(conversation.messages, conversation.tools, only=wanted)
            rows = self._fitting(whole)
        except NotPrefixError:
            if self._options.train_on == "all":
                raise RecordError("not prefix-preserving: no row can hold all turns") from None
            self.counts["split"] += 1
            rows = [row for number in wanted for row in self._fitting(self._until(conversation, number))]
        except TemplateError as error:
            raise RecordError(str(error)) from error
        if not rows:
            raise RecordError("too long")
        return rows

    def responses(self, responses: Sequence[Response]) -> list[Row]:
        """The rows of one answer, or of a pair of them, which share a training sample.

        Raises:
            RecordError: one of them cannot be trained on; says why.
        """
        rows = self._fit(responses)
        if len(rows) == 2 and rows[0].ids == rows[1].ids:
            raise RecordError("equal answers: nothing to prefer")
        return rows

    def _fit(self, responses: Sequence[Response]) -> list[Row]:
        """The rows, cut if they have to share a sample and do not fit into it."""
        rows = [self._response(response) for response in responses]
        longest = self._options.longest
        if longest is None or sum(row.positions for row in rows) <= longest:
            return rows
        if self._options.too_long != "cut":
            raise RecordError("too long")
        # What a short answer leaves is for the other one.
        shortest = min(min(row.positions for row in rows), longest // len(rows))
        shares = [longest] if len(rows) == 1 else [max(shortest, longest - shortest)] * 2
        if len(rows) == 2 and all(row.positions > shortest for row in rows):
            shares = [longest // 2] * 2
        rows = [_cut(row, share) for row, share in zip(rows, shares, strict=True)]
        if not all(row.marks.any() for row in rows):
            raise RecordError("too long: the prompt alone fills it")
        self.counts["cut"] += 1
        return rows

    def _response(self, response: Response) -> Row:
        conversation = response.conversation
        self._check_text(conversation)
        wanted = [n for n in range(response.prompt, len(conversation.messages)) if _is_answer(conversation, n)]
        try:
            rendered = self._template.render_answers(conversation.messages, conversation.tools, only=wanted)
        except TemplateError as error:
            raise RecordError(str(error)) from error
        return self._encode(rendered, response.mark)[0]

    def _wanted(self, conversation: Conversation) -> list[int]:
        """Numbers of the answers that are trained, in order."""
        numbers = [n for n in range(len(conversation.messages)) if _is_answer(conversation, n)]
        if self._options.train_on == "last":
            numbers = numbers[-1:]
        trained = [number for number in numbers if number not in conversation.untrained]
        if not trained:
            raise RecordError("no answer to train on: every one has loss: false")
        return trained

    def _until(self, conversation: Conversation, number: int) -> Rendered:
        """The conversation up to an answer, of which this answer alone is trained."""
        try:
            return self._template.render_answers(conversation.messages[: number + 1], conversation.tools, only=[number])
        except TemplateError as error:
            raise RecordError(str(error)) from error

    def _fitting(self, rendered: Rendered) -> list[Row]:
        """The row of a rendered conversation, shortened if it has to be; none if it is left out."""
        row, ends = self._encode(rendered, Mark.GOOD)
        if self._options.train_on == "all":
            row.marks[:] = Mark.GOOD
        longest = self._options.longest
        if longest is None or row.positions <= longest:
            return [row]
        keep = {"drop": 0, "cut": longest, "turn": max((end - 1 for end in ends if end - 1 <= longest), default=0)}
        shortened = _cut(row, keep[self._options.too_long])
        trained = bool(shortened.marks[1:].any())
        self.counts["cut" if trained else "too long"] += 1
        return [shortened] if trained else []

    def _encode(self, rendered: Rendered, mark: Mark) -> tuple[Row, list[int]]:
        """The row up to the last answer, and the number of tokens up to the end of each answer.

        What follows the last answer, a line break for example, is never predicted from anything that is trained.
        """
        ids: list[int] = []
        marks: list[np.ndarray] = []
        ends = []
        position = 0
        markers = [found.start() for found in self._template.markers.finditer(rendered.text)]
        for answer in rendered.answers:
            for start, stop, kind in ((position, answer.start, Mark.CONTEXT), (answer.start, answer.stop, mark)):
                # Nothing is merged across a marker: it is enough to look back to the last one.
                back = max((place for place in markers if place < start), default=0)
                piece = self._encode_piece(rendered.text[back:stop], start - back, apart=kind is not Mark.CONTEXT)
                ids += piece
                marks.append(np.full(len(piece), kind, dtype=np.uint8))
            position = answer.stop
            ends.append(len(ids))
        return Row(rendered.text[:position], ids, np.concatenate(marks)), ends

    def _encode_piece(self, text: str, border: int, apart: bool) -> list[int]:
        """Tokens of a text behind its first ``border`` characters, whose tokens stay as they are."""
        before = self._tokenizer.encode(text[:border], parse_special=True)
        both = self._tokenizer.encode(text, parse_special=True)
        if both[: len(before)] == before:
            return both[len(before) :]
        self.counts["encoded apart"] += apart
        return self._tokenizer.encode(text[border:], parse_special=True)

    def _check_text(self, conversation: Conversation) -> None:
        """Refuse text that would not be what it says: one that spells a marker, or has characters without tokens."""
        for text in _texts((conversation.messages, conversation.tools)):
            if marker := self._template.markers.search(text):
                raise RecordError(f"spells a marker: {marker[0]}")
            if characters := self._unencodable.characters(text):
                raise RecordError(f"no token: {' '.join(f'U+{ord(character):04X}' for character in characters[:8])}")


def _cut(row: Row, positions: int) -> Row:
    """The beginning of a row."""
    return Row(row.text, row.ids[: positions + 1], row.marks[: positions + 1])


def _is_answer(conversation: Conversation, number: int) -> bool:
    return bool(conversation.messages[number]["role"] == ASSISTANT)


def _texts(value: object) -> Sequence[str]:
    """Every text inside messages and tools."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for held in pair for text in _texts(held)]
    if isinstance(value, list | tuple):
        return [text for held in value for text in _texts(held)]
    return []
