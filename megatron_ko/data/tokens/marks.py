"""The byte beside each token of conversations and preferences: what is trained on it."""

from enum import IntEnum

import numpy as np


class Mark(IntEnum):
    """What is trained on a token."""

    CONTEXT = 0  # nothing: the model is given it
    GOOD = 1  # an answer, or the better one
    BAD = 2  # the worse answer
    MISMATCHED = 3  # the answer to another prompt: nothing, but what a model makes of it is measured (KTO)


def is_trained(marks: np.ndarray) -> np.ndarray:
    """Whether each token is trained: of a mismatched answer none is."""
    trained: np.ndarray = (marks == Mark.GOOD) | (marks == Mark.BAD)
    return trained
