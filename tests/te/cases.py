"""What is tried: models that are built, gradients that are compared, runs that are trained; over a tiny model."""

import math
from dataclasses import dataclass, field
from typing import Any

Sections = dict[str, Any]

EXPERTS = {"family": "mixtral", "moe": {"num_experts": 4, "top_k": 2}}
SHARED = {"family": "qwen3_moe", "moe": {"num_experts": 4, "top_k": 2, "shared_ffn_hidden_size": 64}}
WINDOWS = {"windows": (8, None, 8, 4)}
WIDE = {"hidden_size": 128, "ffn_hidden_size": 256}  # a block of FP8 with block scales is 128 wide
YARN = {"rope": {"scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}}
DOCUMENTS = {"document_mask": True}
FP32, BF16, FP16 = ({"dtype": dtype} for dtype in ("fp32", "bf16", "fp16"))
TP2 = {"tensor": 2, "sequence_parallel": True}


def recipe(name: str, dtype: str = "bf16", **fields: Any) -> Sections:
    """A section `precision`."""
    return {"dtype": dtype, "recipe": name, **fields}


def high(name: str) -> Sections:
    """A recipe of which one layer at each end is out."""
    return recipe(name, first_layers_high=1, last_layers_high=1)


RECIPES = ("fp8_delayed", "fp8_current", "fp8_blockwise", "mxfp8", "nvfp4")
MODELS: dict[str, Sections] = {
    **{dtype: {"precision": {"dtype": dtype}} for dtype in ("fp32", "bf16", "fp16")},
    "qwen3": {"model": {"family": "qwen3"}},
    "windows": {"model": WINDOWS},
    "yarn": {"model": YARN},
    "documents": {"data": DOCUMENTS},
    "tied": {"model": {"tie_embeddings": True}},
    "offloaded-activations": {"training": {"offload_layers": 2}, "precision": BF16},
    "recompute-selective": {"training": {"recompute": "selective"}},
    "recompute-full": {"training": {"recompute": "full"}},
    "moe": {"model": EXPERTS, "precision": BF16},
    "moe-allgather": {"model": EXPERTS, "parallel": {"dispatcher": "allgather"}},
    "moe-shared": {"model": SHARED},
    "moe-biased": {"model": {"family": "keural", "moe": {"num_experts": 4, "top_k": 2, "score": "sigmoid",
                             "expert_bias": True}, "windows": (7, None, 7, None), "tie_embeddings": True}},
    **{name: {"model": WIDE, "precision": recipe(name)} for name in RECIPES},
    **{f"{name}-high": {"precision": high(name)} for name in ("fp8_current", "mxfp8", "nvfp4")},
    **{f"moe-{name}": {"model": EXPERTS, "precision": recipe(name)} for name in ("fp8_delayed", "fp8_current", "mxfp8",
                                                                                  "nvfp4")},
    **{f"{name}-weights": {"model": WIDE, "precision": recipe(name, fp8_weights=True)} for name in RECIPES[:4]},
    "moe-mxfp8-weights": {"model": EXPERTS, "precision": recipe("mxfp8", fp8_weights=True)},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Something that is run in both back ends.

    Attributes:
        sections: over the tiny model.
        gradients: largest relative difference of a gradient of the first step.
        losses: largest relative difference of a loss.
        least: smallest difference of a gradient: what shows that a recipe was at work.
        calls: kernels that must have been called.
        never: kernels that must not.
        interpreted: whether the kernel of the cross entropy is run by Triton's interpreter.
    """

    sections: Sections = field(default_factory=dict)
    gradients: float = 5e-6
    losses: float = 1e-5
    least: float = 0.0
    calls: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    interpreted: bool = False


def low(precision: Sections, model: Sections | None = None, most: float = 0.2, **others: Any) -> Case:
    """A recipe against portable layers without one: its rounding is seen, and bounded."""
    sections = {"model": model or {}, "precision": precision, **others}
    return Case(sections, gradients=most, losses=2e-2, least=1e-2, calls=("quantize", "generic_gemm"))


def emulated(model: Sections | None = None, most: float = 1e-6, **fields: Any) -> Case:
    """MXFP8 in Transformer Engine's modules against its emulation, both with everything else in fp32.

    A run refuses fp32 with this recipe; here it takes all other rounding out of the comparison.
    """
    data = fields.pop("data", {})
    precision = recipe("mxfp8", "fp32", mxfp8={"emulate": True}, **fields)
    return Case({"model": model or {}, "data": data, "precision": precision}, gradients=most, calls=("quantize",))


HALF = {"gradients": 2e-2, "losses": 1e-3}
FUSED = ("fused_attn_fwd", "fused_attn_bwd")
PASSES: dict[str, Case] = {
    "fp32-interpreted": Case(interpreted=True),
    "bf16-interpreted": Case({"precision": BF16}, **HALF, interpreted=True),
    "fp32": Case(calls=("rmsnorm_fwd", "rmsnorm_bwd", "fused_rope_backward", "generic_gemm"), never=FUSED),
    "bf16": Case({"precision": BF16}, **HALF, calls=FUSED),
    "fp16": Case({"precision": FP16}, gradients=2e-3, losses=1e-4, calls=FUSED),
    "qwen3": Case({"model": {"family": "qwen3"}}),
    "windows": Case({"model": WINDOWS}),
    "windows-fp16": Case({"model": WINDOWS, "precision": FP16}, gradients=2e-3, losses=1e-4, calls=FUSED),
    "documents": Case({"data": DOCUMENTS}),
    "documents-windows": Case({"model": WINDOWS, "data": DOCUMENTS}),
    "documents-windows-fp16": Case(
        {"model": WINDOWS, "data": DOCUMENTS, "precision": FP16}, gradients=2e-3, losses=1e-4, calls=FUSED
    ),
    "yarn": Case({"model": YARN}),
    "recompute-selective": Case({"training": {"recompute": "selective"}}),
    "recompute-full": Case({"training": {"recompute": "full"}}),
    "offloaded-activations": Case({"training": {"offload_layers": 2}, "precision": BF16}, **HALF),
    "moe": Case({"model": EXPERTS}, calls=("te_general_grouped_gemm",)),
    "moe-shared": Case({"model": SHARED}),
    "moe-capacity": Case({"model": {**EXPERTS, "moe": {**EXPERTS["moe"], "capacity_factor": 1.0}}}),  # type: ignore[dict-item]
    "mxfp8-emulated": emulated(),
    "mxfp8-emulated-hybrid": emulated(fp8_format="hybrid"),
    # A layer in fp32 sums in another order, and what follows rounds a value in a million to the other side.
    "mxfp8-emulated-high": emulated(most=1e-3, first_layers_high=1, last_layers_high=1),
    "mxfp8-emulated-documents": emulated({"family": "qwen3", **WINDOWS}, data=DOCUMENTS),
    "mxfp8-emulated-moe": emulated(EXPERTS),
    "mxfp8-emulated-shared": emulated(SHARED),
    "mxfp8": low(recipe("mxfp8")),
    "fp8_current": low(recipe("fp8_current")),
    "fp8_current-high": low(high("fp8_current")),
    "fp8_delayed": low(recipe("fp8_delayed")),
    "fp8_blockwise": low(recipe("fp8_blockwise"), WIDE),
    "nvfp4": low(recipe("nvfp4"), WIDE, most=0.5),
    "moe-mxfp8": low(recipe("mxfp8"), EXPERTS),
    "moe-fp8_current": low(recipe("fp8_current"), EXPERTS),
}

STEADY = {"gradients": 5e-6, "losses": 1e-5}
ZERO = {"distributed_optimizer": True}
TRAINED: dict[str, Case] = {
    "fp32": Case({"parallel": {"distributed_optimizer": False}}, **STEADY, calls=("multi_tensor_adam",)),
    "fp32-distributed": Case({"parallel": ZERO}, **STEADY, calls=("multi_tensor_adam",)),
    "bf16": Case({"precision": BF16}, **HALF, calls=("multi_tensor_adam", "multi_tensor_l2norm")),
    "bf16-overlapped": Case(
        {"precision": BF16, "parallel": {"overlap_grad_reduce": True, "overlap_param_gather": True}}, **HALF
    ),
    "fp16": Case({"precision": FP16}, gradients=2e-3, losses=2e-4),
    "moe": Case({"model": EXPERTS}, **STEADY),
    "moe-biased": Case(
        {"model": {"family": "mixtral", "moe": {"num_experts": 4, "top_k": 2, "score": "sigmoid", "expert_bias": True}}}
    ),
    "moe-bf16": Case({"model": EXPERTS, "precision": BF16}, **HALF),
    "recompute-moe": Case({"model": EXPERTS, "training": {"recompute": "full"}}, **STEADY),
    **{name: low(recipe(name), WIDE) for name in RECIPES[:4]},
    **{f"{name}-weights": low(recipe(name, fp8_weights=True), WIDE) for name in RECIPES[:3]},
    # The buffer of gradients has been used to gather weights by the time that gradients are looked at.
    "mxfp8-weights": low(recipe("mxfp8", fp8_weights=True), WIDE, most=math.inf),
    "mxfp8-weights-overlapped": low(
        recipe("mxfp8", fp8_weights=True), WIDE, most=math.inf, parallel={"overlap_grad_reduce": True}
    ),
}
# On two ranks. The router is ours in both back ends.
FP16_CASE = {"gradients": 2e-3, "losses": 2e-4}
TWO_RANKS: dict[str, Case] = {
    "dp2": Case({"parallel": ZERO}),
    "tp2": Case({"parallel": {"tensor": 2}}, interpreted=True),
    "tp2-sequence": Case({"parallel": TP2}),
    "tp2-sequence-bf16": Case({"parallel": TP2, "precision": BF16}, **HALF),
    "tp2-sequence-qwen3": Case({"model": {"family": "qwen3"}, "parallel": TP2}),
    "tp2-sequence-documents": Case({"data": DOCUMENTS, "parallel": TP2}),
    "tp2-sequence-fp8_current": low(recipe("fp8_current"), parallel=TP2),
    "pp2": Case({"parallel": {"pipeline": 2}}),
    "ep2": Case({"model": EXPERTS, "parallel": {"expert": 2}}),
    "ep2-allgather": Case({"model": EXPERTS, "parallel": {"expert": 2, "dispatcher": "allgather"}}),
    "ep2-mxfp8": low(recipe("mxfp8"), EXPERTS, parallel={"expert": 2}),
    "etp2": Case({"model": EXPERTS, "parallel": TP2}),
    "etp2-shared": Case({"model": SHARED, "parallel": TP2}),
    "tp2-ep2": Case({"model": EXPERTS, "parallel": {**TP2, "expert": 2, "expert_tensor": 1}}),
    **{
        f"cp2-{exchange}": Case(
            {"parallel": {"context": 2, "context_exchange": exchange}, "precision": FP16}, **FP16_CASE, calls=FUSED
        )
        for exchange in ("p2p", "a2a", "all_gather")
    },
    **{
        f"cp2-{exchange}-windows": Case(
            {"model": WINDOWS, "parallel": {"context": 2, "context_exchange": exchange}, "precision": FP16},
            **FP16_CASE,
            calls=FUSED,
        )
        for exchange in ("a2a", "all_gather")
    },
}
