"""Products of a few rows with a large matrix, which is what one more token of a few texts costs."""

import torch
import torch.nn.functional as F
from torch import Tensor

# MKL's products of thin fp32 matrices take up to twice as long as oneDNN's on two cores of an AMD EPYC, most of all
# from 4 rows to 8. PyTorch already gives bf16 to oneDNN.
_FEW = 16


def linear(given: Tensor, weight: Tensor) -> Tensor:
    """``F.linear`` without a bias: [..., i] and [o, i] -> [..., o]."""
    few = given.numel() <= _FEW * given.shape[-1]
    if few and given.dtype == weight.dtype == torch.float32 and given.is_cpu and torch.backends.mkldnn.is_available():
        # The operator that PyTorch's compiler puts in the place of F.linear on a CPU.
        product: Tensor = torch.ops.mkldnn._linear_pointwise(given, weight, None, "none", [], "")
        return product
    return F.linear(given, weight)
