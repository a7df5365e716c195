"""Tokens that the user adds: those that stand for their own text, and reserved ones that no text becomes."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from tokenizers import AddedToken

from megatron_ko.data.tokenizer.special import SPECIAL_TOKENS
from megatron_ko.errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# What SentencePiece writes for a space, and what it cannot read.
_SIGNS = "\u2581\u2585\0"


@dataclass(frozen=True)
class ExtraTokens:
    """Tokens beside those that are learnt.

    Attributes:
        user_defined: each is one id wherever its text stands.
        reserved: number of special tokens for later use; ``reserved_names`` are their names.
    """

    user_defined: tuple[str, ...] = ()
    reserved: int = 0

    def __len__(self) -> int:
        return len(self.user_defined) + self.reserved

    def reserved_names(self, taken: Collection[str] = ()) -> list[str]:
        """<|reserved_0|> and so on, without those that a vocabulary has."""
        names = (f"<|reserved_{number}|>" for number in count())
        return list(islice((name for name in names if name not in taken), self.reserved))

    def added(self) -> list[AddedToken]:
        """The user-defined tokens as `tokenizers` declares them."""
        return [AddedToken(token, special=False, normalized=False) for token in self.user_defined]

    def check(self, taken: Collection[str] = ()) -> None:
        """Refuse what cannot be a token of its own.

        Args:
            taken: pieces of a vocabulary that is extended.

        Raises:
            TokenizerError: which token, and why.
        """
        seen: set[str] = {*SPECIAL_TOKENS, *taken, *self.reserved_names(taken)}
        for token in self.user_defined:
            problem = None
            if not token or any(letter.isspace() for letter in token):
                problem = "it is empty, or has white space in it, at which text is cut"
            elif any(sign in token for sign in _SIGNS) or _BYTE_TOKEN.fullmatch(token):
                problem = "the vocabulary has another use for it"
            elif token in seen:
                problem = "it is there already"
            if problem:
                raise TokenizerError(
                    "this cannot be a user-defined token",
                    got=f"{token!r}: {problem}",
                    expected="visible text, each token once",
                    remedy="remove it from --user-defined-tokens",
                )
            seen.add(token)


def parse_tokens(given: str | None) -> tuple[str, ...]:
    """The tokens of a file, one a line, or of a comma-separated list.

    Raises:
        TokenizerError: the file is not UTF-8.
    """
    if given is None:
        return ()
    if Path(given).is_file():
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{given} is no UTF-8", got=str(error), remedy="save it as UTF-8") from error
        return tuple(line for line in lines if line)
    return tuple(given.split(","))
