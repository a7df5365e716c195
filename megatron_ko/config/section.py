"""The base of every configuration section: frozen, keyword-only, and closed to unknown keys."""

from enum import Enum
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Resume(Enum):
    """What a run does that is continued with another value."""

    BOUND = "refuses: the weights belong to the value"
    FREE = "goes on, and says so"
    SILENT = "goes on: no result depends on it"


class Section(BaseModel):
    """A part of the configuration that cannot change after it was read.

    ``resume`` holds for all fields but those that are marked: ``name: Annotated[int, Resume.FREE]``. A section that
    says nothing, and so a new field of the model, is bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    resume: ClassVar[Resume] = Resume.BOUND
