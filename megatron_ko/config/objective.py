"""The training objective."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class ObjectiveConfig(Section):
    """The training objective."""

    resume = Resume.FREE

    kind: Literal["lm"] = Field("lm", description="lm: next-token cross entropy over every token.")
