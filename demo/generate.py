"""Extends the hand-written demo corpus to any size, the same bytes from the same seed on every machine.

    python demo/generate.py --size 50MB --seed 7 --output FILE.jsonl

First come the hand-written documents in a seeded order, then documents composed from the templates and word tables of
`corpus/templates.toml`, with a few hand-written sentences in each. Only `random.Random.random()` is used: Python
promises its sequence for a seed, and does not promise that of `choice` or `shuffle`.
"""

import argparse
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, pairwise
from math import gcd
from pathlib import Path
from random import Random
from typing import Any, TypeVar

CORPUS = Path(__file__).parent / "corpus"
GENRES = ("encyclopedia", "news", "dialogue", "howto", "technical", "essay")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

# Particle -> (after a final consonant, after a vowel).
PARTICLES = {
    "은": ("은", "는"), "이": ("이", "가"), "을": ("을", "를"), "과": ("과", "와"), "으로": ("으로", "로"),
    "아": ("아", "야"), "이랑": ("이랑", "랑"), "이다": ("이다", "다"), "이고": ("이고", "고"), "이야": ("이야", "야"),
    "이라고": ("이라고", "라고"), "이니": ("이니", "니"), "이면": ("이면", "면"),
}  # fmt: skip
NO_FINAL, FINAL_RIEUL, FINAL_OTHER = 0, 8, 21
# How a number ends when it is read aloud. Zero ends 영, 십, 백, 천, 만 or 억: a consonant, never ㄹ.
DIGIT_FINALS = dict(zip("0123456789", (21, 8, 0, 16, 0, 0, 1, 8, 8, 0), strict=True))
# Names of capital letters that do not end in a vowel: 엘, 엠, 엔, 알.
LETTER_FINALS = {"L": FINAL_RIEUL, "M": FINAL_OTHER, "N": FINAL_OTHER, "R": FINAL_RIEUL}
CLOSED_BRACKETS = re.compile(r"\([^()]*\)$")
CLOSING_MARKS = "\"'”’》〉」』`%.,!? "
SLOT = re.compile(r"\{([가-힣]+)(\d?)(?:([:.])([가-힣]+))?\}")

T = TypeVar("T")
JOINTS = {"paragraph": " ", "lines": "\n", "turns": "\n", "blocks": "\n\n"}

Row = dict[str, str]  # what one word of a table puts into a format string: {"사람1:은": "하람은", ...}
Document = dict[str, str]


def final_consonant(word: str) -> int:
    """Number of the final consonant (jongseong) of the last sound: 0 none, 8 ㄹ, any other a consonant.

    A reading in brackets is not spoken: 대한민국(大韓民國) ends like 대한민국. Digits count as read in Sino-Korean
    (below 10^12), capitals as the letters are named.

    Raises:
        ValueError: the word ends in something whose sound is unknown, for example a lower-case Latin letter.
    """
    spoken = CLOSED_BRACKETS.sub("", word.rstrip(CLOSING_MARKS)).rstrip(CLOSING_MARKS)
    last = spoken[-1:]
    if "가" <= last <= "힣":
        return (ord(last) - ord("가")) % 28
    if last in DIGIT_FINALS:
        return DIGIT_FINALS[last]
    if "A" <= last <= "Z":
        return LETTER_FINALS.get(last, NO_FINAL)
    raise ValueError(f"cannot tell how {word!r} ends when it is spoken; expected Hangul, a digit or a capital letter")


def attach(word: str, particle: str) -> str:
    """The word with its particle, named by the form after a consonant: attach("바다", "은") == "바다는"."""
    after_consonant, after_vowel = PARTICLES[particle]
    final = final_consonant(word)
    bare = final == NO_FINAL or (particle == "으로" and final == FINAL_RIEUL)
    return word + (after_vowel if bare else after_consonant)


@dataclass(frozen=True)
class Template:
    """A format string, the tables whose words change each time it is used, and the words that must differ."""

    text: str
    tables: tuple[Sequence[Row], ...]
    pairs: tuple[tuple[str, str, Sequence[Row]], ...]

    def fill(self, forms: Row, random: Random) -> str:
        for table in self.tables:
            forms.update(table[int(random.random() * len(table))])
        for first, second, table in self.pairs:
            while forms[first] == forms[second]:
                forms.update(table[int(random.random() * len(table))])
        return self.text % forms


@dataclass(frozen=True)
class Part:
    """A paragraph of a document: how many lines it takes, and how they are put together."""

    style: str
    take: tuple[int, int]
    lines: tuple[Template, ...]

    def compose(self, forms: Row, random: Random) -> str:
        chosen = [template.fill(forms, random) for template in pick(self.lines, between(self.take, random), random)]
        if self.style == "numbered":
            return "\n".join([f"{number}. {line}" for number, line in enumerate(chosen, start=1)])
        return JOINTS[self.style].join(chosen)


@dataclass(frozen=True)
class Kind:
    """One kind of document: its genre, titles, parts in order, and hand-written passages to put between them."""

    genre: str
    titles: tuple[Template, ...]
    parts: tuple[Part, ...]
    speakers: tuple[Template, ...]
    document_tables: tuple[Sequence[Row], ...]
    take_passages: tuple[int, int]
    passages: tuple[str, ...]

    def compose(self, number: int, random: Random) -> Document:
        forms: Row = {}
        for table in self.document_tables:
            forms.update(table[int(random.random() * len(table))])
        title = self.titles[int(random.random() * len(self.titles))].fill(forms, random)
        paragraphs = [part.compose(forms, random) for part in self.parts]
        for passage in pick(self.passages, between(self.take_passages, random), random):
            paragraphs.insert(1 + int(random.random() * (len(paragraphs) - 1)), passage)
        text = self.spoken(paragraphs, forms, random) if self.speakers else "\n\n".join(paragraphs)
        return {"text": text, "genre": self.genre, "title": f"{title} #{number}"}

    def spoken(self, paragraphs: Sequence[str], forms: Row, random: Random) -> str:
        speakers = [speaker.fill(forms, random) for speaker in self.speakers]
        turns = "\n".join(paragraphs).split("\n")
        return "\n".join([f"{speakers[turn % 2]}: {line}" for turn, line in enumerate(turns)])


def between(limits: tuple[int, int], random: Random) -> int:
    return limits[0] + int(random.random() * (limits[1] - limits[0] + 1))


def pick(items: Sequence[T], number: int, random: Random) -> list[T]:
    """`number` different items (all, if there are fewer), cheaply: a random start and a random stride."""
    size = len(items)
    if number == 0 or size == 0:
        return []
    strides = coprime_to(size)
    index = int(random.random() * size)
    stride = strides[int(random.random() * len(strides))]
    return [items[(index + turn * stride) % size] for turn in range(min(number, size))]


@cache
def coprime_to(size: int) -> tuple[int, ...]:
    return tuple(stride for stride in range(1, size + 1) if gcd(stride, size) == 1)


class Compiler:
    """Turns the text of templates and word tables into what the inner loop needs, once.

    A slot becomes a %-format key; a table becomes, for each name it is used under (수, 수2), the rows of exactly the
    forms that some template asks for.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        self.words = word_tables(description)
        self.document_tables = frozenset(description["document_tables"])
        self.forms: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for text in strings_in(description["kinds"]):
            for table, digit, mark, form in SLOT.findall(text):
                self.forms.setdefault((table, digit), {("", "")}).add((mark, form))
        self.rows = {slot: self.rows_of(slot, sorted(forms)) for slot, forms in self.forms.items()}

    def rows_of(self, slot: tuple[str, str], forms: Iterable[tuple[str, str]]) -> tuple[Row, ...]:
        table, name = self.words[slot[0]], "".join(slot)
        return tuple({name + mark + form: inflect(word, mark, form) for mark, form in forms} for word in table)

    def template(self, text: str) -> Template:
        slots = {(table, digit): None for table, digit, _, _ in SLOT.findall(text)}
        changing = [slot for slot in slots if not self.kept(*slot)]
        pairs = [
            (table, table + digit, self.rows[table, digit])
            for table, digit in changing
            if digit and ((table, "") in slots or table in self.document_tables)
        ]
        format_text = SLOT.sub(lambda slot: f"%({slot[0][1:-1]})s", text.replace("%", "%%"))
        return Template(format_text, tuple(self.rows[slot] for slot in changing), tuple(pairs))

    def templates(self, texts: Iterable[str]) -> tuple[Template, ...]:
        return tuple(map(self.template, texts))

    def kept(self, table: str, digit: str) -> bool:
        return table in self.document_tables and not digit

    def kind(self, description: dict[str, Any]) -> Kind:
        genre = description["genre"]
        parts = tuple(
            Part(part.get("style", "paragraph"), tuple(part["take"]), self.templates(part["lines"]))
            for part in description["parts"]
        )
        kept = [slot for slot in self.forms if self.kept(*slot)]
        return Kind(
            genre=genre,
            titles=self.templates(description["titles"]),
            parts=parts,
            speakers=self.templates(description.get("speakers", ())),
            document_tables=tuple(self.rows[slot] for slot in kept),
            take_passages=tuple(description["passages"]),
            passages=passages_of(genre),
        )


def inflect(word: str | Row, mark: str, form: str) -> str:
    if isinstance(word, dict):
        return word[form or "다"]
    return attach(word, form) if mark == ":" else word


def word_tables(description: dict[str, Any]) -> dict[str, list[Any]]:
    tables: dict[str, list[Any]] = dict(description["words"])
    for name, (first, last, step) in description["ranges"].items():
        tables[name] = [f"{value:,}" for value in range(first, last + 1, step)]
    for name, (first, last, step) in description["years"].items():
        tables[name] = [str(value) for value in range(first, last + 1, step)]
    for name, (first, last, step) in description["decimals"].items():
        tables[name] = [f"{value // 10}.{value % 10}" for value in range(first, last + 1, step)]
    return tables


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


@cache
def handwritten() -> tuple[Document, ...]:
    """The hand-written documents, genre by genre."""
    return tuple(
        json.loads(line)
        for genre in GENRES
        for line in (CORPUS / f"{genre}.jsonl").read_text(encoding="utf-8").splitlines()
    )


def passages_of(genre: str) -> tuple[str, ...]:
    """Pairs of neighbouring sentences of prose, or of turns of a dialogue, that can stand in another document."""
    found: list[str] = []
    for document in handwritten():
        if document["genre"] != genre:
            continue
        if genre == "dialogue":
            turns = re.findall(r"^[가-힣 ]+: (.+)$", document["text"], flags=re.MULTILINE)
            found += map("\n".join, pairwise(turns))
            continue
        prose = re.sub(r"```.*?```", "", document["text"], flags=re.DOTALL)
        for line in prose.split("\n"):
            sentences = re.split(r"(?<=[.?!])\s+(?=[가-힣A-Z])", line)
            found += map(" ".join, pairwise(sentences))
    return tuple(item for item in found if 20 <= len(item) <= 160 and stands_alone(item))


def stands_alone(passage: str) -> bool:
    """Nothing of a table, a list, or half of a quotation."""
    whole = all(passage.count(mark) % 2 == 0 for mark in "\"`'") and passage.count("(") == passage.count(")")
    return whole and re.match(r"[|\-#0-9]", passage) is None


@cache
def kinds() -> tuple[Kind, ...]:
    description = tomllib.loads((CORPUS / "templates.toml").read_text(encoding="utf-8"))
    compiler = Compiler(description)
    return tuple(map(compiler.kind, description["kinds"]))


def documents(seed: int) -> Iterator[Document]:
    """Without end: the hand-written documents in a seeded order, then composed ones."""
    random = Random(seed)
    first = list(handwritten())
    for last in range(len(first) - 1, 0, -1):
        other = int(random.random() * (last + 1))
        first[last], first[other] = first[other], first[last]
    yield from first
    every = kinds()
    for number in count(1):
        yield every[int(random.random() * len(every))].compose(number, random)


def lines(size_bytes: int, seed: int) -> Iterator[tuple[Document, bytes]]:
    """Documents with their JSON lines, up to the first that reaches `size_bytes` of lines."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    written = 0
    for document in documents(seed):
        if written >= size_bytes:
            return
        line = (encode(document) + "\n").encode()
        written += len(line)
        yield document, line


def generate(size_bytes: int, seed: int) -> Iterator[Document]:
    """Documents {"text", "genre", "title"} that make `size_bytes` of JSON lines in UTF-8, or one document more.

    A stream: a smaller size is a prefix of a larger one. Equal arguments give equal documents everywhere.
    """
    for document, _ in lines(size_bytes, seed):
        yield document


def parse_size(text: str) -> int:
    """Bytes in "50MB", "1.5 GiB" or "4000000"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[KMG]i?)?B?)", text.strip(), flags=re.IGNORECASE)
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}; expected for example 50MB, 1.5GiB or 4000000")
    return int(float(match[1]) * UNITS[match[2].upper()])


def write(path: Path, size_bytes: int, seed: int) -> int:
    """Writes the file whole or not at all; returns the number of documents."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    written = 0
    try:
        with temporary.open("wb") as file:
            for _, line in lines(size_bytes, seed):
                file.write(line)
                written += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Extend the hand-written Korean demo corpus to any size.")
    parser.add_argument("--size", type=parse_size, required=True, help="size of the file, for example 50MB")
    parser.add_argument("--seed", type=int, default=7, help="another seed gives other documents (default 7)")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl file that does not exist yet")
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"{options.output} exists; remove it or choose another --output")
    if not options.output.parent.is_dir():
        parser.error(f"there is no folder {options.output.parent}; make it first")
    number = write(options.output, options.size, options.seed)
    print(f"{options.output}: {number:,} documents, {options.output.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
