"""What the tests of this folder share besides fixtures."""

import os
from collections.abc import Callable

from gpu.workers import Ran

Train = Callable[..., Ran]
Losses = Callable[..., list[float]]
# What can be trained on a CPU is, so that this folder does not rot where there is no GPU.
REHEARSED = bool(os.environ.get("GPU_TESTS_ON_CPU"))
