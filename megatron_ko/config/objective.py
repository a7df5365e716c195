"""What is minimised."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Section


class ObjectiveConfig(Section):
    """The training objective."""

    kind: Literal["lm"] = Field("lm", description="lm: next-token cross entropy over every token.")
