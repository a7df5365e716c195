"""Clusters of documents from pairs. The array may live on disk; the root of a cluster is its smallest number."""

import numpy as np


def union(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join left[i] with right[i] for every i. ``parent`` starts as 0, 1, 2, ... and is changed in place."""
    while left.size:
        left, right = roots(parent, left), roots(parent, right)
        apart = left != right
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))


def roots(parent: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The smallest member of the cluster of each number; paths are shortened on the way."""
    found = parent[numbers]
    while True:
        above = parent[found]
        if np.array_equal(above, found):
            break
        found = above
    parent[numbers] = found
    return found
