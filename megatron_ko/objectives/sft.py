"""Supervised fine-tuning: the cross-entropy of the answers in conversations."""

from megatron_ko.objectives.lm import LanguageModelling


class FineTuning(LanguageModelling):
    """Next-token prediction where the mask is the answers': a mean over the trained tokens of the global batch.

    Not a mean over conversations: a short answer weighs less than a long one, at any layout and batch size alike.
    """
