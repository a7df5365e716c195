"""The base of all configuration sections: frozen, keyword-only, without unknown keys."""

from enum import Enum
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Resume(Enum):
    """What a continued run does if the value has changed."""

    BOUND = "refuses: the weights belong to the value"
    FREE = "goes on, and says so"
    SILENT = "goes on: no result depends on it"


class Section(BaseModel):
    """A part of the configuration; immutable after it was read.

    ``resume`` applies to all fields except marked ones: ``name: Annotated[int, Resume.FREE]``. The default is bound, so
    a new field of the model is bound, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    resume: ClassVar[Resume] = Resume.BOUND
