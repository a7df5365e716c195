"""A vocabulary whose rows are split over tensor-parallel ranks."""

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary over tensor-parallel ranks.

    Attributes:
        size: number of token ids.
        group: the ranks; all hold the same number of rows, and the last rows may be padding.
    """

    size: int
    group: dist.ProcessGroup

    def rows_in_use(self, rows: int) -> int:
        """How many of this rank's rows are tokens; the padding rows come last."""
        return max(0, min(rows, self.size - self.group.rank() * rows))
