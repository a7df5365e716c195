"""How many bands of how many rows: the arithmetic of locality-sensitive hashing.

Two documents of Jaccard similarity J agree in one value of their signatures with probability J, in a band of r values
with J**r, and in at least one of b bands with 1 - (1 - J**r)**b. They are compared only then.
"""

import math
from dataclasses import dataclass

from megatron_ko.errors import DataError

LARGEST_SIGNATURE = 256
_RECALL = 0.9
_MOST_HASHES = 4096


@dataclass(frozen=True)
class Bands:
    """``bands`` bands of ``rows`` values each."""

    bands: int
    rows: int

    @property
    def hashes(self) -> int:
        """Values of a signature."""
        return self.bands * self.rows

    def candidate_probability(self, similarity: float) -> float:
        """That two documents of this similarity are compared."""
        return 1.0 - (1.0 - similarity**self.rows) ** self.bands

    def __str__(self) -> str:
        return f"{self.bands}x{self.rows}"


def bands_for(threshold: float) -> Bands:
    """The most selective bands that still find nine of ten pairs at the threshold itself, and more above it.

    More rows compare fewer unrelated documents; the signature is kept within 256 values. A threshold that is too low
    for 256 values gets bands of one row.

    Raises:
        DataError: a threshold outside (0, 1].
    """
    if not 0.0 < threshold <= 1.0:
        raise DataError("the threshold must lie above 0, at most 1", got=threshold, remedy="--threshold 0.45")
    if threshold == 1.0:
        return Bands(1, 8)
    best = Bands(LARGEST_SIGNATURE, 1)
    for rows in range(1, LARGEST_SIGNATURE + 1):
        bands = math.ceil(math.log(1.0 - _RECALL) / math.log1p(-(threshold**rows)))
        if bands * rows > LARGEST_SIGNATURE:
            break
        best = Bands(bands, rows)
    return best


def check_bands(bands: int | None, rows: int | None, threshold: float) -> Bands:
    """The bands that were asked for, or those that suit the threshold.

    Raises:
        DataError: only one of the two was given, or numbers that cannot be.
    """
    derived = bands_for(threshold)
    if bands is None and rows is None:
        return derived
    if bands is None or rows is None or min(bands, rows) < 1 or bands * rows > _MOST_HASHES:
        raise DataError(
            "--bands and --rows go together",
            got=f"bands {bands}, rows {rows}",
            expected=f"both, each at least 1, together at most {_MOST_HASHES} hashes",
            remedy="--bands 14 --rows 8, or neither: then they follow from --threshold",
        )
    return Bands(bands, rows)
