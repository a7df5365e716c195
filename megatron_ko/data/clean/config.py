"""A pipeline file: how text is split into words, and the stages in order, each with its options.

    words: eojeol
    stages:
      - unicode
      - hangul: {min_ratio: 0.5}

A stage may occur more than once. All problems of a file are reported at once, with the nearest valid name.
"""

import dataclasses
import json
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from megatron_ko.config import raise_problems
from megatron_ko.config.load import read_tree
from megatron_ko.config.problems import Problem, from_validation, nearest
from megatron_ko.config.section import Section
from megatron_ko.data.clean.registry import STAGES
from megatron_ko.data.clean.words import WordSplitting
from megatron_ko.data.text.inputs import content_hash
from megatron_ko.storage.open_json import JsonObject


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage.

    Attributes:
        kind: key of ``registry.STAGES``.
        name: in reports; the second stage of a kind is "kind.2".
        options: its section.
    """

    kind: str
    name: str
    options: Section


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """A whole pipeline."""

    words: WordSplitting
    stages: tuple[StageConfig, ...]

    def described(self) -> JsonObject:
        """Everything that decides what the pipeline does, as JSON values, with hashes of the files that it reads."""
        stages = [{stage.name: _described(stage.options)} for stage in self.stages]
        return {"words": self.words, "stages": stages}


def load_clean_config(path: Path) -> CleanConfig:
    """Read a pipeline file; ``extends`` works as in run files, and a list replaces a list.

    Raises:
        ConfigError: every problem of the file.
    """
    tree = read_tree(path)
    problems: list[Problem] = []
    for key in tree:
        if key not in ("words", "stages"):
            guess = nearest(key, ("words", "stages"))
            remedy = f"did you mean '{guess}'?" if guess else "remove it"
            problems.append(Problem(path=key, got=tree[key], expected="a known key: words, stages", remedy=remedy))
    words = tree.get("words", "eojeol")
    if words not in get_args(WordSplitting):
        problems.append(
            Problem(
                path="words", got=words, expected=" or ".join(get_args(WordSplitting)), remedy="leave it out for eojeol"
            )
        )
    stages = tree.get("stages")
    found: list[StageConfig] = []
    if not isinstance(stages, list) or not stages:
        problems.append(
            Problem(path="stages", got=stages, expected="a list of stages", remedy=f"stages: [{next(iter(STAGES))}]")
        )
    else:
        for index, entry in enumerate(stages):
            stage = _stage(f"stages.{index}", entry, path.parent, [other.kind for other in found], problems)
            found += [stage] if stage else []
    raise_problems(problems, str(path))
    return CleanConfig(words, tuple(found))


def _stage(where: str, entry: object, folder: Path, earlier: list[str], problems: list[Problem]) -> StageConfig | None:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        problems.append(
            Problem(
                path=where,
                got=entry,
                expected="a name, or one 'name: {options}'",
                remedy=f"for example {next(iter(STAGES))}",
            )
        )
        return None
    ((kind, options),) = entry.items()
    if kind not in STAGES:
        guess = nearest(str(kind), STAGES)
        remedy = f"did you mean '{guess}'?" if guess else "choose one of them"
        problems.append(Problem(path=where, got=kind, expected=f"a stage: {', '.join(STAGES)}", remedy=remedy))
        return None
    if options is not None and not isinstance(options, dict):
        problems.append(
            Problem(
                path=f"{where}.{kind}",
                got=options,
                expected="options as 'key: value'",
                remedy=f"remove what follows '{kind}' for its defaults",
            )
        )
        return None
    schema = STAGES[kind].options
    try:
        # Through JSON, because pydantic's strict mode then still turns text into paths and lists into tuples.
        section = schema.model_validate_json(json.dumps(_anchored(options or {}, schema, folder), default=str))
    except ValidationError as error:
        for problem in from_validation(error, schema):
            problems.append(dataclasses.replace(problem, path=f"{where}.{kind}.{problem.path}"))
        return None
    number = earlier.count(kind) + 1
    return StageConfig(kind, kind if number == 1 else f"{kind}.{number}", section)


def _paths(schema: type[Section]) -> list[str]:
    """Names of the fields that hold a path."""
    return [name for name, field in schema.model_fields.items() if field.annotation in (Path, Path | None)]


def _anchored(options: JsonObject, schema: type[Section], folder: Path) -> JsonObject:
    """Paths in a file are relative to it."""
    anchored = dict(options)
    for name in _paths(schema):
        if isinstance(anchored.get(name), str):
            anchored[name] = str(folder.absolute() / Path(anchored[name]).expanduser())
    return anchored


def _described(options: Section) -> JsonObject:
    described: JsonObject = options.model_dump(mode="json")
    for name in _paths(type(options)):
        path = getattr(options, name)
        if path is not None and path.is_file():
            described[name] = {"file": path.name, "xxh3_128": content_hash(path)}
    return described
