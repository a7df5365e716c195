"""Refuses options that are set but have no effect: a user who sets one expects it to do something."""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from megatron_ko.config.problems import Problem
from megatron_ko.config.run import RunConfig
from megatron_ko.config.tree import default_at


class Reader(NamedTuple):
    """A feature that uses some options, as text and as a condition."""

    words: str
    is_there: Callable[[RunConfig], bool]
    options: tuple[str, ...]


# Not in this table: features that are often switched off for an experiment without changing their other options, such
# as validation (eval.samples=0), the balancing loss (model.moe.aux_loss=none) and recipes with high-precision layers.
READERS = (
    Reader("parallel.tensor above 1", lambda c: c.parallel.tensor > 1, ("parallel.sequence_parallel",)),
    Reader("parallel.context above 1", lambda c: c.parallel.context > 1, ("parallel.context_exchange",)),
    Reader(
        "parallel.pipeline above 1",
        lambda c: c.parallel.pipeline > 1,
        (
            "parallel.virtual_pipeline",
            "parallel.first_stage_layers",
            "parallel.last_stage_layers",
            "parallel.embedding_as_layer",
            "parallel.loss_as_layer",
        ),
    ),
    Reader(
        "a family with experts (model.moe)",
        lambda c: c.model.moe is not None,
        ("parallel.expert", "parallel.expert_tensor", "parallel.dispatcher"),
    ),
    Reader(
        "model.moe.expert_bias=true",
        lambda c: c.model.moe is None or c.model.moe.expert_bias,
        ("model.moe.expert_bias_update_rate",),
    ),
    Reader(
        "a recipe with 8 bits (precision.recipe)",
        lambda c: c.precision.recipe not in ("none", "nvfp4"),
        ("precision.fp8_format",),
    ),
    Reader(
        "a recipe with 8 bits, not emulated (precision.recipe)",
        lambda c: c.precision.recipe not in ("none", "nvfp4") and not c.precision.emulated,
        ("precision.fp8_weights",),
    ),
    Reader("precision.recipe=mxfp8", lambda c: c.precision.recipe == "mxfp8", ("precision.mxfp8.emulate",)),
    Reader("precision.mxfp8.emulate=true", lambda c: c.precision.emulated, ("precision.mxfp8.scale_rounding",)),
    Reader(
        "precision.dtype=fp16",
        lambda c: c.precision.dtype == "fp16",
        (
            "precision.initial_loss_scale",
            "precision.min_loss_scale",
            "precision.loss_scale_window",
            "precision.loss_scale_hysteresis",
        ),
    ),
    Reader("objective.kind=sft", lambda c: c.objective.kind == "sft", ("objective.neftune_alpha", "data.filler")),
    Reader("objective.neftune_alpha above 0", lambda c: c.objective.neftune_alpha > 0, ("objective.neftune_seed",)),
    Reader(
        "objective.kind=dpo", lambda c: c.objective.kind == "dpo", ("objective.losses", "objective.label_smoothing")
    ),
    Reader(
        "objective.kind=kto", lambda c: c.objective.kind == "kto", ("objective.good_weight", "objective.bad_weight")
    ),
    Reader("objective.kind=simpo", lambda c: c.objective.kind == "simpo", ("objective.gamma",)),
    Reader("objective.kind=dpo or cpo", lambda c: c.objective.kind in ("dpo", "cpo"), ("objective.sft_weight",)),
    Reader("preferences", lambda c: c.objective.kind not in ("lm", "sft"), ("objective.beta",)),
    Reader("checkpoint.start_from", lambda c: c.checkpoint.start_from is not None, ("checkpoint.start_best",)),
    Reader("optim.schedule=wsd", lambda c: c.optim.schedule == "wsd", ("optim.decay_steps",)),
    Reader("optim.schedule other than constant", lambda c: c.optim.schedule != "constant", ("optim.min_lr_ratio",)),
    Reader(
        "training.recompute=selective", lambda c: c.training.recompute == "selective", ("training.recompute_modules",)
    ),
    Reader("training.recompute=full", lambda c: c.training.recompute == "full", ("training.recompute_layers",)),
)


def check_unread(config: RunConfig) -> Iterator[Problem]:
    """Options that differ from their default although the feature that uses them is off."""
    for reader in READERS:
        if reader.is_there(config):
            continue
        for option in reader.options:
            value, default = _value(config, option), default_at(RunConfig, option)
            if value is not None and value != default:
                yield Problem(
                    path=option,
                    got=value,
                    expected=f"{json.dumps(default)}, the default: it is only used with {reader.words}",
                    remedy=f"remove it, or {reader.words}",
                )


def _value(config: RunConfig, option: str) -> object:
    """The value at a dotted path; None below a section that is missing."""
    value: object = config
    for name in option.split("."):
        value = getattr(value, name, None)
    return value
