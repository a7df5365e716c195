"""Problems of a configuration, collected so that all of them are told at once."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

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
    here, above = _locate(schema, loc), _locate(schema, loc[:-1])
    path = ".".join(here.path)
    if item["type"] == "extra_forbidden":
        names = [name for section in above.sections for name in section.model_fields]
        meant = nearest(loc[-1], names)
        remedy = f"did you mean '{'.'.join([*above.path, meant])}'?" if meant else "remove it"
        return Problem(path=path, got=item["input"], expected=f"a known key: {', '.join(names)}", remedy=remedy)
    if item["type"] == "missing":
        field = above.sections[0].model_fields[loc[-1]]
        example = f"for example {path}={field.examples[0]}" if field.examples else None
        return Problem(path=path, got=_Nothing(), expected=f"a value: {field.description}", remedy=example)
    if item["type"].startswith("union_tag"):
        tags = [tag for section in here.sections for tag in _tags(section)]
        got = item["input"].get("type", _Nothing())
        meant = nearest(str(got), tags)
        guess = f"did you mean '{meant}'?" if meant else None
        return Problem(path=f"{path}.type", got=got, expected=f"one of {', '.join(tags)}", remedy=guess)
    return Problem(path=path, got=item["input"], expected=_sentence(item["msg"]))


def _sentence(message: str) -> str:
    """Pydantic's "Input should be ..." without its subject."""
    return message.removeprefix("Input should be ")


@dataclass(frozen=True)
class _Location:
    """Where pydantic points to.

    Attributes:
        sections: the section there; several where ``type`` chooses one and it was not read yet.
        path: the keys that lead there, without the choices of ``type``, which pydantic counts as keys.
    """

    sections: list[type[BaseModel]]
    path: list[str]


def _locate(schema: type[BaseModel], loc: Sequence[str]) -> _Location:
    sections, path = [schema], []
    for part in loc:
        if chosen := [section for section in sections if part in _tags(section)]:
            sections = chosen
            continue
        path.append(part)
        if not part.isdigit():
            fields = [section.model_fields[part] for section in sections if part in section.model_fields]
            sections = [inner for field in fields for inner in _sections_in(field.annotation)]
    return _Location(sections, path)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]


def _tags(section: type[BaseModel]) -> list[str]:
    """The values of ``type`` that choose this section among others."""
    field = section.model_fields.get("type")
    return [str(tag) for tag in get_args(field.annotation)] if field else []
