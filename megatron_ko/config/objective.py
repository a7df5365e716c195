"""The training objective."""

from typing import Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section

Kind = Literal["lm", "sft", "dpo", "orpo", "simpo", "cpo", "kto"]
DpoLoss = Literal[
    "sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero",
    "apo_down", "discopop",
]  # fmt: skip


class ObjectiveConfig(Section):
    """The training objective."""

    resume = Resume.FREE

    kind: Kind = Field(
        "lm",
        description="lm: every token of texts; sft: the answers in conversations; dpo, orpo, simpo, cpo: pairs of "
        "answers; kto: answers with a verdict.",
    )
    losses: dict[DpoLoss, float] = Field(
        {"sigmoid": 1.0}, min_length=1, description="dpo: losses of a pair, and the weight of each in their sum."
    )
    beta: float = Field(
        0.1, gt=0, description="How much a preference counts (dpo, simpo, cpo, kto), or its weight (orpo)."
    )
    gamma: float = Field(0.5, ge=0, description="simpo: by how much the better answer should lead.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="dpo: share of pairs that are taken to be the wrong way round."
    )
    good_weight: float = Field(1.0, gt=0, description="kto: weight of good answers.")
    bad_weight: float = Field(1.0, gt=0, description="kto: weight of bad answers.")
    neftune_alpha: float = Field(
        0.0, ge=0, description="sft: strength of the noise on embeddings (5 to 15 are usual); 0: none."
    )
    neftune_seed: int = Field(0, ge=0, lt=2**32, description="sft: decides the noise, with the number of the sample.")
    sft_weight: float = Field(0.0, ge=0, description="dpo, cpo: weight of the better answer's own loss, per token.")

    @property
    def needs_reference(self) -> bool:
        """Whether answers are compared with what the model says that the run starts with."""
        return self.kind in ("dpo", "kto")
