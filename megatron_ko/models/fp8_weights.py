"""Initial values of weights that are kept in 8 bits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from megatron.core.fp8_utils import is_float8tensor


@contextmanager
def initial_values(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Within this context, 8-bit weights appear as the ordinary tensors from which the optimizer takes its masters.

    Transformer Engine keeps such a tensor next to each 8-bit parameter until the distributed optimizer has read it. At
    the end, its values are quantised into the parameter. Without 8-bit weights nothing happens.

    Args:
        chunks: model chunks, freshly built.
    """
    quantised = [
        (module, name, parameter)
        for chunk in chunks
        for module in chunk.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_float8tensor(parameter)
    ]
    for module, name, parameter in quantised:
        module._parameters[name] = torch.nn.Parameter(parameter.get_high_precision_init_val(), requires_grad=False)
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, parameter in quantised:
                parameter.copy_(module._parameters[name].to(parameter.device))
                module._parameters[name] = parameter
