"""What an extended tokenizer must prove: no old id moved, and any text has the old ids, once new ones are spelt out."""

from collections.abc import Iterable, Sequence
from itertools import chain

from megatron_ko.data.tokenizer.gates import NASTY
from megatron_ko.data.tokenizer.grow import Merge
from megatron_ko.data.tokenizer.pieces import Spelling
from megatron_ko.data.tokenizer.tokenizer import Tokenizer
from megatron_ko.errors import TokenizerError
from megatron_ko.storage.open_json import JsonObject


def old_pieces(
    content: JsonObject, spelling: Spelling, pieces: Iterable[str], merges: Sequence[Merge]
) -> dict[int, list[int]]:
    """The old ids that each new id stands for.

    Args:
        content: tokenizer.json with the new pieces.
        spelling: of its pieces.
        pieces: the new ones, in the order of their ids.
        merges: the new ones; a piece without a merge is a character, which was spelt in bytes before.
    """
    vocab = content["model"]["vocab"]
    made_of = {merge.piece: (merge.left, merge.right) for merge in merges}
    result: dict[int, list[int]] = {}
    for piece in pieces:
        if piece in made_of:
            halves = [vocab[half] for half in made_of[piece]]
        else:
            bytes_ = spelling.byte_pieces()
            halves = [vocab[bytes_[byte]] for byte in piece.encode("utf-8")]
        result[vocab[piece]] = list(chain.from_iterable(result.get(half, [half]) for half in halves))
    return result


def in_old_ids(ids: Sequence[int], parts: dict[int, list[int]]) -> list[int]:
    """New ids replaced by the old ids that they stand for."""
    return list(chain.from_iterable(parts.get(number, (number,)) for number in ids))


def prove_extension(old: Tokenizer, new: Tokenizer, parts: dict[int, list[int]], samples: Sequence[str]) -> int:
    """Every old id, every new piece, and texts.

    Returns:
        the number of texts.

    Raises:
        TokenizerError: the first difference.
    """
    before, after = (tokenizer.vocabulary() for tokenizer in (old, new))
    if moved := [piece for piece, number in before.items() if after.get(piece) != number]:
        _fail("an old id moved", moved[0], after.get(moved[0]), before[moved[0]])
    special, declared = new.special_tokens, new.special_tokens.keys() | new.user_defined.keys()
    if not old.special_tokens.items() <= special.items() or old.eod != new.eod:
        _fail("special tokens changed", "", new.special_tokens, old.special_tokens)
    for piece in sorted(after.keys() - before.keys() - declared):
        if new.pieces_of_word(piece) != [after[piece]]:
            _fail("a new piece is not what its own text becomes", piece, new.pieces_of_word(piece), [after[piece]])
    # Text is cut at new user-defined tokens, so it is another text there.
    cut = new.user_defined.keys() - old.user_defined.keys()
    texts = [text for text in (*NASTY, *samples) if not any(token in text for token in cut)]
    for text, first, second in zip(texts, old.encode_batch(texts), new.encode_batch(texts), strict=True):
        if in_old_ids(second, parts) != first:
            _fail("a text has other ids than before", text, in_old_ids(second, parts)[:40], first[:40])
        if old.decode(first) != new.decode(second):
            _fail("a text decodes otherwise than before", text, new.decode(second), old.decode(first))
    return len(texts)


def _fail(what: str, text: str, got: object, expected: object) -> None:
    raise TokenizerError(
        f"the extended tokenizer failed its proof and was not written: {what}",
        got=f"{got!r} for {text[:200]!r}"[:1000],
        expected=str(expected)[:1000],
        remedy="report it with the base tokenizer: this must not happen for any text",
    )
