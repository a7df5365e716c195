"""One SentencePiece model, two files: a .model with exact scores, and a tokenizer.json that gives the same ids.

The pieces of tokenizer.json hold real spaces where SentencePiece writes U+2581. So no normaliser is needed, a U+2581 in
the text itself survives the round trip (it is spelt in bytes), and nothing is added in front of the text.
"""

from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from megatron_ko.data.tokenizer.extra import ExtraTokens
from megatron_ko.data.tokenizer.special import SPECIAL_TOKENS, UNKNOWN

SPACE = "\u2581"
BREAKS = ("\n", "\t")
# Scores are rounded to multiples of 1/64: a float32 holds such numbers exactly up to 2**24 / 64.
QUANTUM = 64
EXACT_SUM = 2.0**24 / QUANTUM
# Control and byte tokens stand in the vocabulary of tokenizer.json like words. No text may choose them by spelling
# them: this is far below the sum of any other spelling.
_NEVER = -10_000.0

# Generated code, whose classes no type checker sees.
_proto: Any = sentencepiece_model_pb2
_Piece: Any = _proto.ModelProto.SentencePiece


def settle_scores(serialized: bytes) -> bytes:
    """The same model with scores that sum exactly, and with line break and tab as ordinary one-character pieces.

    SentencePiece gives user-defined symbols a computed score with a fraction of 0.1. As ordinary pieces they are still
    always tokens of their own: no other piece holds these characters.
    """
    model = _proto.ModelProto()
    model.ParseFromString(serialized)
    exact = model.trainer_spec.model_type == _proto.TrainerSpec.UNIGRAM
    for piece in model.pieces:
        if piece.type == _Piece.USER_DEFINED and piece.piece in BREAKS:
            piece.type = _Piece.NORMAL
            piece.score = 0.0
        elif piece.type == _Piece.NORMAL and exact:
            piece.score = round(piece.score * QUANTUM) / QUANTUM
    result: bytes = model.SerializeToString()
    return result


def piece_scores(serialized: bytes) -> list[float]:
    """Scores that encoding adds up: those of the ordinary pieces of a Unigram model; none for BPE."""
    model = _proto.ModelProto()
    model.ParseFromString(serialized)
    if model.trainer_spec.model_type != _proto.TrainerSpec.UNIGRAM:
        return []
    return [piece.score for piece in model.pieces if piece.type == _Piece.NORMAL]


def to_tokenizer_json(serialized: bytes, extra: ExtraTokens | None = None) -> Tokenizer:
    """The `tokenizers` form of a model that went through ``settle_scores``."""
    model = _proto.ModelProto()
    model.ParseFromString(serialized)
    if model.trainer_spec.model_type == _proto.TrainerSpec.UNIGRAM:
        tokenizer = Tokenizer(_unigram(model))
    else:
        tokenizer = Tokenizer(_bpe(model))
    # Pieces hold spaces only at their start, so words can be encoded (and cached) one by one.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" +[^ ]*|[^ ]+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    add_special_tokens(tokenizer, extra or ExtraTokens())
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer, extra: ExtraTokens) -> None:
    """Declare the special and the user-defined tokens, which are in the vocabulary already."""
    special = [*SPECIAL_TOKENS, *extra.reserved_names()]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens(extra.added())


def _unigram(model: Any) -> models.Unigram:
    vocabulary = [(_text(piece), piece.score if piece.type == _Piece.NORMAL else _NEVER) for piece in model.pieces]
    return models.Unigram(vocabulary, unk_id=model.trainer_spec.unk_id, byte_fallback=True)


def _bpe(model: Any) -> models.BPE:
    vocabulary = {_text(piece): index for index, piece in enumerate(model.pieces)}
    ranks = {_text(piece): -piece.score for piece in model.pieces if piece.type == _Piece.NORMAL}
    merges = []
    for piece, rank in ranks.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ranks and right in ranks:
                merges.append((rank, vocabulary[left], vocabulary[right], left, right))
    return models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for *_, left, right in sorted(merges)],
        unk_token=UNKNOWN,
        byte_fallback=True,
        fuse_unk=True,
    )


def _text(piece: Any) -> str:
    text: str = piece.piece
    return text.replace(SPACE, " ")
