"""Training objectives. Each gives a loss as a sum with a count; the trainer divides by the global denominator."""

from megatron_ko.objectives.base import LossOutput, Objective
from megatron_ko.objectives.lm import LanguageModelling

__all__ = ["LanguageModelling", "LossOutput", "Objective"]
