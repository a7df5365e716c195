"""What the tensors of adapters are called, and the weight that computes the same as a layer with its adapter."""

from torch import Tensor

# In the names of their tensors, between that of the layer and "a", "b" or "magnitude_change".
MARK = ".adapter."
LAYERS = "decoder.layers."
# The layer of each target, and whether its weight is split over ranks by rows (else by columns).
PLACES = {
    "qkv": ("self_attention.linear_qkv", True),
    "proj": ("self_attention.linear_proj", False),
    "fc1": ("mlp.linear_fc1", True),
    "fc2": ("mlp.linear_fc2", False),
}
# The same of experts.
EXPERT_PLACES = {"fc1": "mlp.experts.experts.linear_fc1", "fc2": "mlp.experts.experts.linear_fc2"}


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude_change: Tensor | None = None) -> Tensor:
    """The one weight that computes what a layer and its adapter compute: in fp32, then rounded to the weight's type.

    Args:
        weight: [out, in], whole along in; or [experts, out, in], and the others likewise.
        a: [r, in].
        b: [out, r].
        scale: s.
        magnitude_change: [out], of DoRA.
    """
    changed = plus_product(weight, a, b, scale)
    if magnitude_change is not None:
        norms = weight.float().square().sum(1).sqrt() + magnitude_change.float()
        changed *= (norms / changed.square().sum(1).sqrt()).unsqueeze(1)
    return changed.to(weight.dtype)


def plus_product(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s B A in fp32."""
    return weight.float() + scale * (b.float() @ a.float())
