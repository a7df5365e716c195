"""Which validation was the best, and when it is no use to go on. Every rank sees the same numbers, so all agree."""

import math

from megatron_ko.config import TrainingConfig
from megatron_ko.config.training import EarlyStopping
from megatron_ko.log import get_logger
from megatron_ko.train.state import Evaluation, TrainState

_log = get_logger(__name__)
_DEFAULT = EarlyStopping(patience=1)


def note_validation(state: TrainState, evaluation: Evaluation, settings: EarlyStopping | None) -> None:
    """Remember the best validation so far, and count those since that were not better by ``min_delta``.

    Args:
        state: progress; changed.
        evaluation: of the present weights.
        settings: what is compared; None: the loss.
    """
    settings = settings or _DEFAULT
    value = evaluation.loss if settings.metric == "valid_loss" else evaluation.metrics[settings.metric]
    gain = math.inf if state.best_value is None else _gain(settings.metric, value, state.best_value)
    if gain > settings.min_delta:
        state.best_value, state.best_step, state.unimproved = value, state.step, 0
    else:
        state.unimproved += 1


def _gain(metric: str, value: float, best: float) -> float:
    """By how much a value is better; a loss should fall, everything else rise. NaN is never better."""
    return best - value if metric == "valid_loss" else value - best


def is_done(state: TrainState, training: TrainingConfig) -> bool:
    """Whether the run has done all its steps, or has waited in vain for a better validation."""
    return state.done(training.steps) or stopped_early(state, training)


def stopped_early(state: TrainState, training: TrainingConfig) -> bool:
    """Whether so many validations in a row were no better that the run ends."""
    settings = training.early_stopping
    return settings is not None and state.unimproved >= settings.patience


def describe(state: TrainState, training: TrainingConfig) -> str:
    """How a run ended that ``is_done``."""
    if training.early_stopping is None or not stopped_early(state, training):
        return f"done at step {state.step}"
    return (
        f"done at step {state.step}: {state.unimproved} validations without a better {training.early_stopping.metric} "
        f"than {state.best_value:.4g} at step {state.best_step}"
    )
