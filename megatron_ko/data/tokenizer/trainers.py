"""The two trainers, SentencePiece and byte-level BPE, with the settings that make an exact round trip possible."""

import io
import re
from collections.abc import Iterator
from typing import Literal

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_ko.data.tokenizer.convert import BREAKS, add_special_tokens, settle_scores
from megatron_ko.data.tokenizer.extra import ExtraTokens
from megatron_ko.data.tokenizer.pieces import MARK
from megatron_ko.data.tokenizer.special import BEGIN, CHAT_END, CHAT_START, END, PAD, SPECIAL_TOKENS, UNKNOWN
from megatron_ko.errors import TokenizerError

# The pre-tokenizer of Qwen2, to the letter: llama.cpp and others recognise it.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# SentencePiece silently skips longer lines than its limit; sentences are split well below it.
SENTENCE_BYTES = 8000
_SENTENCEPIECE_LIMIT = 16_384
# Fixed, because sums over threads are rounded in thread order: the same vocabulary on every machine.
_TRAINER_THREADS = 16
_NONE = ExtraTokens()
_PRINTABLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))


def train_sentencepiece(
    sentences: Iterator[str],
    model: Literal["unigram", "bpe"],
    vocab_size: int,
    character_coverage: float,
    extra: ExtraTokens = _NONE,
) -> bytes:
    """Train a SentencePiece model with byte fallback, identity normalisation and no dummy prefix.

    Args:
        sentences: lines of at most ``SENTENCE_BYTES`` bytes, from ``sentences_of``.
        model: the algorithm.
        vocab_size: exact number of ids, special and byte tokens included.
        character_coverage: share of the characters of the text that get a piece; the rest is spelt in bytes.
        extra: tokens that are not learnt.

    Raises:
        TokenizerError: the vocabulary is too small or too large for this text.
    """
    _refuse_tiny(vocab_size, extra)
    target = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=target,
            model_type=model,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            # The mark too: text without any space would leave the vocabulary without a piece for it.
            required_chars=_PRINTABLE_ASCII + MARK,
            user_defined_symbols=[*BREAKS, *extra.user_defined],
            control_symbols=[CHAT_START, CHAT_END, *extra.reserved_names()],
            unk_id=SPECIAL_TOKENS.index(UNKNOWN),
            bos_id=SPECIAL_TOKENS.index(BEGIN),
            eos_id=SPECIAL_TOKENS.index(END),
            pad_id=SPECIAL_TOKENS.index(PAD),
            max_sentence_length=_SENTENCEPIECE_LIMIT,
            num_threads=_TRAINER_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(error, vocab_size) from error
    return settle_scores(target.getvalue())


def train_byte_bpe(sentences: Iterator[str], vocab_size: int, extra: ExtraTokens = _NONE) -> Tokenizer:
    """Train a byte-level BPE with the pre-tokenizer of Qwen2 and without normalisation.

    Raises:
        TokenizerError: the text is too small for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    bytes_as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_as_letters])
    tokenizer.decoder = decoders.ByteLevel()
    _refuse_tiny(vocab_size, extra)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *extra.reserved_names(), *extra.user_defined],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    add_special_tokens(tokenizer, extra)
    if tokenizer.get_vocab_size() != vocab_size:
        raise _too_large(vocab_size, tokenizer.get_vocab_size())
    return tokenizer


def sentences_of(text: str) -> Iterator[str]:
    """Lines of a document, long ones split at a space, without the characters that SentencePiece reserves.

    SentencePiece skips, without an error, a sentence that is too long, holds a NUL, or holds U+2585, and takes U+2581
    for a space and a tab for a border.
    """
    for line in re.split("[\n\t]", re.sub("[\u0000\u2581\u2585]", " ", text)):
        yield from _split_long(line) if line else ()


def _split_long(line: str) -> Iterator[str]:
    # A character has at most four bytes: short lines need no counting.
    while len(line) * 4 > SENTENCE_BYTES and len(encoded := line.encode("utf-8")) > SENTENCE_BYTES:
        head = encoded[:SENTENCE_BYTES].decode("utf-8", errors="ignore")
        cut = head.rfind(" ")
        cut = cut if cut > 0 else len(head)
        yield line[:cut]
        line = line[cut:]
    if line:
        yield line


def _refuse_tiny(vocab_size: int, extra: ExtraTokens) -> None:
    smallest = len(SPECIAL_TOKENS) + len(extra) + 256
    if vocab_size < smallest:
        raise TokenizerError(
            "the vocabulary is too small for the bytes and special tokens",
            got=vocab_size,
            expected=f"at least {smallest}",
            remedy="--vocab-size 16000 is usual for Korean alone",
        )


def _explain(error: RuntimeError, vocab_size: int) -> TokenizerError:
    message = str(error)
    if found := re.search(r"value <= (\d+)", message):
        return _too_large(vocab_size, int(found[1]))
    if found := re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message):
        return TokenizerError(
            "the vocabulary is too small for the characters, bytes and special tokens",
            got=vocab_size,
            expected=f"more than {found[2]}",
            remedy=f"--vocab-size {int(found[2]) * 2}, or a lower --character-coverage",
        )
    return TokenizerError("SentencePiece could not train", got=message, remedy="look at the text that it was given")


def _too_large(vocab_size: int, largest: int) -> TokenizerError:
    return TokenizerError(
        "the text is too small for this vocabulary",
        got=vocab_size,
        expected=f"at most {largest}",
        remedy=f"--vocab-size {largest}, or more text",
    )
