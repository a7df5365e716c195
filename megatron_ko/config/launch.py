"""How many processes run, and with how many threads."""

from typing import Annotated

from pydantic import Field, StringConstraints

from megatron_ko.config.section import Resume, Section


class LaunchConfig(Section):
    """Ranks that `train` starts by itself. Under torchrun or srun their environment decides instead."""

    resume = Resume.SILENT

    nodes: int = Field(1, gt=0, description="Machines; more than one needs srun or torchrun.")
    ranks_per_node: int | None = Field(
        None, gt=0, description="Ranks on each machine; None: its GPUs, or one copy of the model on a CPU."
    )
    threads_per_rank: int | None = Field(
        None, gt=0, description="CPU threads of one rank; None: the cores shared evenly."
    )
    environment: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")], str] = Field(
        default_factory=dict,
        description="Environment variables of all ranks, such as NCCL's. What is set outside already stays.",
    )
