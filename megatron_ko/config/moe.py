"""Mixture of experts: number of experts, routing, and load balancing."""

from typing import Annotated, Literal

from pydantic import Field

from megatron_ko.config.section import Resume, Section


class MoeConfig(Section):
    """Every feed-forward layer is a mixture of experts of width ``model.ffn_hidden_size``."""

    num_experts: int = Field(gt=1, description="Experts in a layer.")
    top_k: int = Field(gt=0, description="Experts that compute one token.")
    score: Literal["softmax", "sigmoid"] = Field("softmax", description="From router logits to the weights of experts.")
    softmax_before_topk: bool = Field(
        False, description="Weights are a softmax over all experts, not over the chosen ones: they do not add up to 1."
    )
    topk_scale: float = Field(1.0, gt=0, description="Factor on the weights of the chosen experts.")
    shared_ffn_hidden_size: int = Field(0, ge=0, description="Width of an expert that computes every token; 0: none.")
    aux_loss: Annotated[Literal["none", "batch", "sequence", "global"], Resume.FREE] = Field(
        "batch", description="Load-balancing loss over a micro-batch, each sequence, or all data-parallel ranks."
    )
    aux_loss_coeff: Annotated[float, Resume.FREE] = Field(
        0.01, ge=0, description="Its weight, in every layer; layers add up."
    )
    z_loss_coeff: Annotated[float, Resume.FREE] = Field(
        0.0, ge=0, description="Weight of the router z-loss (arXiv:2202.08906) in a layer."
    )
    expert_bias: bool = Field(False, description="Balance without a loss, by a bias on the choice (arXiv:2408.15664).")
    expert_bias_update_rate: Annotated[float, Resume.FREE] = Field(
        1e-3, gt=0, description="Step of that bias after each optimizer step."
    )
    capacity_factor: Annotated[float | None, Resume.FREE] = Field(
        None, gt=0, description="An expert takes at most this share of even load and drops the rest; None: dropless."
    )
    starved_load: Annotated[float, Resume.FREE] = Field(
        0.1, ge=0, lt=1, description="Warn when an expert gets less than this share of even load; 0: never."
    )
