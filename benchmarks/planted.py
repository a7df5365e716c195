"""Documents with edited copies of themselves, as ``benchmarks/dedup.py`` and the tests plant them.

A copy is edited at a rate: that share of its words (what stands between blanks), or of its characters, is touched.

    words   single words all over the text are replaced, dropped, or followed by another one, in equal parts
    block   one stretch of words is replaced by as many others
    chars   single characters all over the text are replaced, dropped, or followed by another one, in equal parts

Replacements are drawn from the words, or characters, of all documents.
"""

import random
import re
from collections.abc import Callable, Sequence

KINDS = ("words", "block", "chars")
RATES = (0.05, 0.10, 0.15, 0.20)


def editor(documents: Sequence[str], kind: str, rate: float, seed: int) -> Callable[[str], str]:
    """A function that gives an edited copy of a document."""
    draw = random.Random(f"{kind} {rate} {seed}")
    words = [word for document in documents for word in document.split()]
    characters = [character for word in draw.choices(words, k=20_000) for character in word]

    def scattered(units: Sequence[str], others: Sequence[str], touched: Callable[[str], bool]) -> str:
        left: list[str] = []
        for unit in units:
            if not touched(unit) or draw.random() >= rate:
                left.append(unit)
                continue
            change = draw.randrange(3)
            left += [[draw.choice(others)], [], [unit, draw.choice(others)]][change]
        return "".join(left)

    def block(text: str) -> str:
        units = re.split(r"(\s+)", text)
        places = list(range(0, len(units), 2))
        length = round(len(places) * rate)
        start = draw.randrange(len(places) - length + 1)
        for place in places[start : start + length]:
            units[place] = draw.choice(words)
        return "".join(units)

    if kind == "block":
        return block
    if kind == "chars":
        return lambda text: scattered(text, characters, lambda unit: not unit.isspace())
    # White space belongs to no word: it stays where it is, so that lines and indentation do.
    return lambda text: scattered(re.split(r"(\s+)", text), words, lambda unit: bool(unit) and not unit.isspace())
