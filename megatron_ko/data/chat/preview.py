"""What the rows of an indexed file train, as people can read it."""

from dataclasses import dataclass
from pathlib import Path

from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.data.tokens.inspect import check_tokenizer
from megatron_ko.data.tokens.marked import MarkedReader
from megatron_ko.data.tokens.marks import Mark, is_trained


@dataclass(frozen=True)
class RowView:
    """One document.

    Attributes:
        row: number of the row that it belongs to.
        good: whether its answer is one to give; false for the worse one of a pair.
        mismatched: whether it is the answer to another prompt, which is measured (KTO) and not trained.
        ids: [t] tokens.
        trained: [t] 1 where a token is trained.
        text, trained_text: decoded, all of it and the trained tokens.
    """

    row: int
    good: bool
    mismatched: bool
    ids: list[int]
    trained: list[int]
    text: str
    trained_text: str


def preview_rows(prefix: Path, tokenizer: Path, rows: int) -> list[RowView]:
    """The first documents of a file.

    Raises:
        DataError: another tokenizer, or another kind of file.
    """
    marked, decoder = MarkedReader(prefix), load_tokenizer(tokenizer)
    check_tokenizer(prefix, marked.manifest, decoder)
    each = marked.chat.documents
    number = min(rows * each, len(marked.reader))
    return [_view(marked, decoder, document, document // each) for document in range(number)]


def _view(marked: MarkedReader, decoder: Tokenizer, document: int, row: int) -> RowView:
    ids, marks = marked.ids(document).tolist(), marked.marks(document)
    return RowView(
        row=row,
        good=bool((marks == Mark.GOOD).any()),
        mismatched=bool((marks == Mark.MISMATCHED).any()),
        ids=ids,
        trained=is_trained(marks).astype(int).tolist(),
        text=decoder.decode(ids),
        trained_text=decoder.decode([token for token, mark in zip(ids, is_trained(marks), strict=True) if mark]),
    )
