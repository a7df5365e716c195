"""Validation while training."""

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class EvalConfig(Section):
    """When and on how much data the model is validated."""

    resume = Resume.FREE

    interval: int = Field(0, ge=0, description="Steps between validations; 0: only after the last step.")
    samples: int = Field(
        256, ge=0, description="Validation sequences over all ranks; 0: no validation. Capped so that it stays cheap."
    )
