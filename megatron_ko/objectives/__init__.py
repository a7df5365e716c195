"""Training objectives. Each returns its loss as sums over tokens or pairs; the trainer divides by the global count."""

from collections.abc import Callable

from megatron_ko.config.objective import ObjectiveConfig
from megatron_ko.data.training.batch import Batch
from megatron_ko.objectives.base import LossOutput, Objective, Term, Unit
from megatron_ko.objectives.kto import Kto
from megatron_ko.objectives.lm import LanguageModelling
from megatron_ko.objectives.preference import Preference
from megatron_ko.objectives.sft import FineTuning
from megatron_ko.parallel.groups import Groups

__all__ = ["KINDS", "LanguageModelling", "LossOutput", "Objective", "Term", "Unit", "build_objective"]

# objective.kind -> function that builds it.
KINDS: dict[str, Callable[[ObjectiveConfig, Groups], Objective[Batch]]] = {
    "lm": lambda config, groups: LanguageModelling(),
    "sft": FineTuning,
    "dpo": Preference,
    "orpo": Preference,
    "simpo": Preference,
    "cpo": Preference,
    "kto": Kto,
}


def build_objective(config: ObjectiveConfig, groups: Groups) -> Objective[Batch]:
    """The configured objective, on these ranks."""
    return KINDS[config.kind](config, groups)
