"""Loads YAML files and dotted overrides into one frozen RunConfig."""

import json
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import YAMLError

from megatron_ko.config.checks.model import check_network
from megatron_ko.config.model import ModelConfig
from megatron_ko.config.problems import from_validation, raise_problems
from megatron_ko.config.run import RunConfig
from megatron_ko.config.section import Section
from megatron_ko.config.tree import sections_in
from megatron_ko.config.validate import check
from megatron_ko.errors import ConfigError

S = TypeVar("S", bound=Section)
Tree = dict[str, Any]


class _Texts(SafeConstructor):
    """YAML without dates: no value here is a date, but names and folders may look like one."""


_Texts.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run configuration.

    Args:
        path: YAML file. ``extends: other.yaml`` starts from another file (or a list of them, later ones win);
            ``from: other.yaml`` inside a section does the same for that section.
        overrides: ``section.key=value`` strings, applied last; values are YAML. Relative paths in them are
            relative to the current folder, those in a file to that file.

    Raises:
        ConfigError: with all problems of the configuration.
    """
    tree = read_tree(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    config = build(RunConfig, tree, origin=_origin(path, overrides))
    raise_problems(check(config), _origin(path, overrides))
    return config


def load_model_config(path: str | Path) -> ModelConfig:
    """Read the model section of a run configuration, or a file that holds just that section (``configs/models``).

    Raises:
        ConfigError: with all problems of the network.
    """
    tree = read_tree(Path(path))
    model = build(ModelConfig, tree.get("model", tree), origin=str(path))
    raise_problems(list(check_network(model)), str(path))
    return model


def build(schema: type[S], tree: Tree, origin: str) -> S:
    """Turn a plain tree into a section, or raise one ConfigError with all problems."""
    try:
        text = json.dumps(tree, default=str)
    except TypeError as error:
        raise ConfigError(f"a key in {origin} is no text", got=str(error), expected="keys that are names") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"something in {origin} contains itself", expected="an anchor outside of its alias") from None
    try:
        # Via JSON, because pydantic's strict mode then still converts strings to paths and lists to tuples.
        return schema.model_validate_json(text)
    except ValidationError as error:
        if (first := error.errors()[0])["type"] == "json_invalid":  # incomplete characters, hundreds of brackets
            raise ConfigError(f"{origin} contains an invalid value", got=first["ctx"]["error"]) from None
        raise_problems(from_validation(error, schema), origin)
        raise AssertionError("a validation error without errors") from error


def dump(config: Section) -> str:
    """The configuration as YAML; ``load_config`` reads it back unchanged."""
    stream = StringIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.representer.add_representer(float, _represent_float)
    writer.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()


def _represent_float(representer: Any, value: float) -> Any:
    """Write a decimal point: other YAML readers take 1e-05 for text."""
    text = repr(value)
    return representer.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))


def read_tree(path: Path, _chain: tuple[Path, ...] = (), _section: str | None = None) -> Tree:
    """Read one YAML file, merge its ``extends`` and ``from`` files, and make paths absolute.

    A file that a section is taken ``from`` holds the content of that section.
    """
    path = _anchored(path, Path.cwd())
    if path in _chain:
        raise ConfigError("files extend each other in a circle", got=" -> ".join(str(p) for p in (*_chain, path)))
    tree = _read_yaml(path)
    chain = (*_chain, path)
    _anchor_paths(tree if _section is None else {_section: tree}, path.parent)
    parents = tree.pop("extends", [])
    merged: Tree = {}
    for parent in parents if isinstance(parents, list) else [parents]:
        merged = merge(merged, read_tree(_other_file(path, "extends", parent), chain, _section))
    for name, section in tree.items():
        if isinstance(section, dict) and "from" in section:
            base = read_tree(_other_file(path, f"{name}.from", section.pop("from")), chain, name)
            tree[name] = merge(base, section)
    return merge(merged, tree)


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tree:
    """Merge ``top`` into ``base``: mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _other_file(path: Path, key: str, value: object) -> Path:
    """The file that ``key`` of the file ``path`` names."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"'{key}' in {path} names no file", got=repr(value), expected="the path of a YAML file")
    other = _anchored(value, path.parent)
    if not other.exists():
        raise ConfigError(f"'{key}' in {path} names a file that does not exist", got=other)
    return other


def _read_yaml(path: Path) -> Tree:
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("configuration file not found", got=path, remedy="see configs/ for examples") from None
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        key = str(error.problem).partition('"')[2].partition('"')[0]
        raise ConfigError(
            "a key appears twice in the configuration file", got=f"{key}, again in line {line} of {path}",
            expected="each key once", remedy="remove one of the two",
        ) from None  # fmt: skip
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError("configuration file is not readable YAML", got=f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError("configuration file does not hold sections", got=path, expected="'section:' mappings")
    return content


def _parse(text: str) -> Any:
    reader = YAML(typ="safe")
    reader.Constructor = _Texts
    try:
        return reader.load(text)
    except RecursionError:
        raise YAMLError("brackets are nested too deeply") from None


def _anchor_paths(tree: Tree, folder: Path, sections: Sequence[type[BaseModel]] = (RunConfig,)) -> None:
    """Make the values of path fields absolute, in place; paths in a file are relative to it."""
    for key, value in tree.items():
        for field in (section.model_fields[key] for section in sections if key in section.model_fields):
            if isinstance(value, str):
                if Path in (field.annotation, *get_args(field.annotation)):
                    tree[key] = str(_anchored(value, folder))
                continue
            inner = [section for section, _ in sections_in(field.annotation)]
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    _anchor_paths(item, folder, inner)


def _anchored(value: str | Path, folder: Path) -> Path:
    try:
        expanded = Path(value).expanduser()
    except RuntimeError:
        remedy = "write the full path, or put './' before it if the folder really has this name"
        raise ConfigError("a path names a user whose home folder is unknown", got=value, remedy=remedy) from None
    return Path(os.path.abspath(folder / expanded))


def _apply_override(tree: Tree, override: str) -> None:
    name, sign, text = override.partition("=")
    parts = name.split(".")
    if not sign or not all(parts):
        raise ConfigError("override not understood", got=override, expected="section.key=value")
    if parts[-1] in ("extends", "from"):
        lines = "'extends: RUN.yaml'" + (f" and '{parts[0]}: {{from: FILE}}'" if len(parts) > 1 else "")
        remedy = f"write a file with {lines}, and use that file"
        raise ConfigError(f"'{parts[-1]}' works in files only", got=override, expected="a value", remedy=remedy)
    try:
        value = _parse(text)
    except YAMLError as error:
        raise ConfigError("override value is not YAML", got=f"{override}: {error}") from None
    _refuse_list_item(tree, parts, value, override)
    addition: Any = value
    for part in reversed(parts):
        addition = {part: addition}
    _anchor_paths(addition, Path.cwd())
    tree.update(merge(tree, addition))


def _refuse_list_item(tree: Tree, parts: Sequence[str], value: Any, override: str) -> None:
    """Refuse an override of a list item, and show how to replace the whole list."""
    below: Any = tree
    for depth, part in enumerate(parts):
        if isinstance(below, list):
            name = ".".join(parts[:depth])
            whole = json.dumps(_with_item(below, parts[depth:], value), ensure_ascii=False, default=str)
            raise ConfigError(
                f"an override cannot reach into the list '{name}'",
                got=override,
                expected="the whole list",
                remedy=f"{name}='{whole}'",
            )
        below = below.get(part) if isinstance(below, dict) else None


def _with_item(items: list[Any], parts: Sequence[str], value: Any) -> list[Any]:
    """A copy of the list with the intended item, or one key of that item, replaced."""
    result = list(items)
    number, *keys = parts
    if number.isdecimal() and int(number) < len(items):
        item = items[int(number)]
        result[int(number)] = {**item, keys[0]: value} if len(keys) == 1 and isinstance(item, dict) else value
    return result


def _origin(path: str | Path, overrides: Sequence[str]) -> str:
    return " ".join([str(path), *overrides])
