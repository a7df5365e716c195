"""Problems of a configuration, collected so that all of them are told at once."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from megatron_ko.errors import ConfigError


class _Nothing:
    """Stands for a value that was not given."""

    def __repr__(self) -> str:
        return "nothing"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, at a dotted path."""

    path: str
    got: object
    expected: str
    remedy: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.path}", f"    got:      {self.got!r}", f"    expected: {self.expected}"]
        if self.remedy:
            lines.append(f"    remedy:   {self.remedy}")
        return "\n".join(lines)


def raise_problems(problems: Sequence[Problem], origin: str) -> None:
    """Raise one ConfigError that tells all problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise ConfigError("\n  ".join([f"{count} in {origin}", *(str(p).replace("\n", "\n  ") for p in problems)]))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant, or None."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return found[0] if found else None


def from_validation(error: ValidationError, schema: type[BaseModel]) -> list[Problem]:
    """Translate pydantic's errors: dotted paths, the value, what was expected, the nearest valid name."""
    return [_translate(dict(item), schema) for item in error.errors()]


def _translate(item: dict[str, Any], schema: type[BaseModel]) -> Problem:
    loc = [str(part) for part in item["loc"]]
    path = ".".join(loc)
    if item["type"] == "extra_forbidden":
        names = _fields_at(schema, loc[:-1])
        guess = nearest(loc[-1], names)
        remedy = f"did you mean '{'.'.join([*loc[:-1], guess])}'?" if guess else "remove it"
        return Problem(path=path, got=item["input"], expected=f"a known key: {', '.join(names)}", remedy=remedy)
    if item["type"] == "missing":
        return Problem(path=path, got=_Nothing(), expected=f"a value: {_describe(schema, loc)}")
    return Problem(path=path, got=item["input"], expected=_sentence(item["msg"]))


def _sentence(message: str) -> str:
    """Pydantic's "Input should be ..." without its subject."""
    return message.removeprefix("Input should be ")


def _section_at(schema: type[BaseModel], loc: Sequence[str]) -> type[BaseModel] | None:
    """The section class that the path leads to, looking through tuples of sections."""
    current: type[BaseModel] | None = schema
    for part in loc:
        if current is None or part.isdigit():
            continue
        field = current.model_fields.get(part)
        current = _section_in(field.annotation) if field else None
    return current


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (section := _section_in(inner)) is not None:
            return section
    return None


def _fields_at(schema: type[BaseModel], loc: Sequence[str]) -> list[str]:
    section = _section_at(schema, loc)
    return list(section.model_fields) if section else []


def _describe(schema: type[BaseModel], loc: Sequence[str]) -> str:
    section = _section_at(schema, loc[:-1])
    field = section.model_fields.get(loc[-1]) if section else None
    return (field.description if field else None) or "required"
