"""How a run behaves when something goes wrong."""

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class ResilienceConfig(Section):
    """Limits after which a run stops instead of wasting money."""

    resume = Resume.SILENT

    timeout_s: float = Field(600.0, gt=0, description="Seconds that a collective may take before it is a failure.")
    max_consecutive_skips: int = Field(
        20, gt=0, description="Steps with a non-finite loss or gradient in a row before the run stops."
    )
