"""Problems of a configuration, collected so that all of them are reported at once."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from megatron_ko.config.foreign_names import FOREIGN_NAMES
from megatron_ko.config.tree import locate
from megatron_ko.errors import ConfigError


class _Nothing:
    """Stands for a value that was not given."""

    def __repr__(self) -> str:
        return "nothing"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem, at a dotted path."""

    path: str
    got: object
    expected: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}\n    got:      {self.got!r}\n    expected: {self.expected}\n    remedy:   {self.remedy}"


def raise_problems(problems: Sequence[Problem], origin: str) -> None:
    """Raise one ConfigError with all problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise ConfigError("\n  ".join([f"{count} in {origin}", *(str(p).replace("\n", "\n  ") for p in problems)]))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant, or None."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return found[0] if found else None


def from_validation(error: ValidationError, schema: type[BaseModel]) -> list[Problem]:
    """Translate pydantic's errors: dotted paths, the value, what was expected, the nearest valid name."""
    found = [(item["loc"], dict(item)) for item in error.errors()]
    # A list with wrong items is also reported as too short, which adds nothing.
    inner = {place[:depth] for place, _ in found for depth in range(1, len(place))}
    meant = {_meant(item, schema) for _, item in found}  # a misspelt key is one problem, not also a missing one
    wrong = [item for place, item in found if place not in inner]
    return [_translate(item, schema) for item in wrong if item["type"] != "missing" or _path(item, schema) not in meant]


def _path(item: dict[str, Any], schema: type[BaseModel]) -> str:
    return ".".join(locate(schema, [str(part) for part in item["loc"]]).path)


def _meant(item: dict[str, Any], schema: type[BaseModel]) -> str | None:
    """The key that was probably meant by an unknown one, as a dotted path."""
    if item["type"] != "extra_forbidden":
        return None
    *above, name = (str(part) for part in item["loc"])
    section = locate(schema, above)
    found = nearest(name, [known for each in section.sections for known in each.model_fields])
    return ".".join([*section.path, found]) if found else None


def _translate(item: dict[str, Any], schema: type[BaseModel]) -> Problem:
    loc = [str(part) for part in item["loc"]]
    here, above = locate(schema, loc), locate(schema, loc[:-1])
    path = ".".join(here.path)
    if item["type"] == "extra_forbidden":
        names = [name for section in above.sections for name in section.model_fields]
        meant = _meant(item, schema)
        remedy = f"did you mean '{meant}'?" if meant else "remove it"
        if loc[-1] in FOREIGN_NAMES:
            remedy = f"its name here is {FOREIGN_NAMES[loc[-1]]}"
        return Problem(path=path, got=item["input"], expected=f"a known key: {', '.join(names)}", remedy=remedy)
    if item["type"] == "missing":
        field = above.field(loc[-1])
        shown = field.examples[0] if field and field.examples else "VALUE"
        expected = "a value" + (f": {field.description}" if field else "")
        remedy = f"for example {path}={shown}" if field else "give the list all its items"
        return Problem(path=path, got=_Nothing(), expected=expected, remedy=remedy)
    if item["type"].startswith("union_tag"):
        tags, key = here.choices(), here.chooser
        got = item["input"].get(key, _Nothing())
        meant = nearest(str(got), tags)
        guess = f"did you mean '{meant}'?" if meant else "choose one of them"
        return Problem(path=f"{path}.{key}", got=got, expected=f"one of {', '.join(tags)}", remedy=guess)
    advice = _advice(item, above.field(loc[-1]))
    return Problem(path=path, got=item["input"], expected=_sentence(item["msg"]), remedy=advice)


# How to write a value, by the first word of pydantic's error type: "int_type", "int_from_float".
_WRITTEN = {
    "int": "write a whole number, without quotes or decimal point",
    "float": "write a number, without quotes: 3.0e-4",
    "finite": "write a finite number",
    "bool": "write true or false",
    "string": "write text; in quotes if it looks like a number",
    "tuple": "write a list: [A, B]",
    "model": "write keys and values: {KEY: VALUE}",
}


def _advice(item: dict[str, Any], field: FieldInfo | None) -> str:
    """What to write instead of a value of the wrong type or out of range."""
    if item["type"] == "literal_error":
        meant = nearest(str(item["input"]), re.findall(r"'([^']+)'", item["ctx"]["expected"]))
        advice = f"did you mean '{meant}'?" if meant else "choose one of them"
    else:
        advice = _WRITTEN.get(item["type"].split("_")[0], "choose another value")
    if advice.endswith("?") or field is None or field.is_required():
        return advice
    simple = isinstance(field.default, int | float | str)
    return f"{advice}, or leave it out" + (f" for the default {json.dumps(field.default)}" if simple else "")


def _sentence(message: str) -> str:
    """Pydantic's "Input should be ..." without its subject."""
    return message.removeprefix("Input should be ").removeprefix("Tuple should have ").partition(" after validation")[0]
