"""The schema as a tree: which sections and fields are at a dotted path, and which key selects one of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megatron_ko.config.section import Resume, Section

Schema = type[BaseModel]


@dataclass(frozen=True)
class Location:
    """A place in the schema.

    Attributes:
        sections: the section there, or several if the key that selects one has not been read yet.
        chooser: that key; None if there is no choice.
        path: the keys that lead there. pydantic counts the selection as a key; it is left out here.
    """

    sections: list[Schema]
    chooser: str | None
    path: list[str]

    def field(self, name: str) -> FieldInfo | None:
        """The field with this name in one of the sections."""
        return next((s.model_fields[name] for s in self.sections if name in s.model_fields), None)

    def choices(self) -> list[str]:
        """The values of the key that selects a section."""
        return [choice for section in self.sections for choice in _choices(section, self.chooser)]


def locate(schema: Schema, loc: Sequence[str]) -> Location:
    """The location below ``schema`` that keys, list indices and selections lead to."""
    sections, chooser, path = [schema], None, list[str]()
    for part in loc:
        if chosen := [section for section in sections if part in _choices(section, chooser)]:
            sections, chooser = chosen, None
            continue
        path.append(part)
        if not part.isdigit():
            fields = [section.model_fields[part] for section in sections if part in section.model_fields]
            found = [pair for field in fields for pair in sections_in(field.annotation, _discriminator(field))]
            sections, chooser = [section for section, _ in found], next((key for _, key in found), None)
    return Location(sections, chooser, path)


def sections_in(annotation: Any, chooser: str | None = None) -> list[tuple[Schema, str | None]]:
    """Sections in an annotation, each with the key that selects it among others."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, chooser)]
    for extra in getattr(annotation, "__metadata__", ()):  # from Annotated
        chooser = (_discriminator(extra) if isinstance(extra, FieldInfo) else None) or chooser
    return [pair for inner in get_args(annotation) for pair in sections_in(inner, chooser)]


def field_at(schema: Schema, path: str) -> FieldInfo:
    """The field at a dotted path below ``schema``.

    Raises:
        KeyError: there is none.
    """
    *above, name = path.split(".")
    field = locate(schema, above).field(name)
    if field is None:
        raise KeyError(path)
    return field


def default_at(schema: Schema, path: str) -> object:
    """The default of the field at a dotted path; None if it has none, or if there is no such field."""
    try:
        field = field_at(schema, path)
    except KeyError:
        return None
    return None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def resume_of(schema: type[Section], path: str) -> Resume:
    """What a continued run does if the value at a dotted path has changed; the path may lead into a mapping field.

    For a name that is not in the schema, such as an option of an earlier version, the section's rule applies.
    """
    *above, name = path.split(".")
    place = locate(schema, above)
    if not place.sections:
        return resume_of(schema, ".".join(above))
    field = place.field(name)
    marks = [mark for mark in (field.metadata if field else []) if isinstance(mark, Resume)]
    (section,) = {section.resume for section in place.sections if issubclass(section, Section)}
    return marks[0] if marks else section


def _discriminator(field: FieldInfo) -> str | None:
    return field.discriminator if isinstance(field.discriminator, str) else None


def _choices(section: Schema, chooser: str | None) -> list[str]:
    field = section.model_fields.get(chooser) if chooser else None
    return [str(value) for value in get_args(field.annotation)] if field else []
