"""The training loop: every side effect is one named line, in order of execution."""

import time

from megatron_ko.errors import KoError
from megatron_ko.log import get_logger
from megatron_ko.models.attention_choice import kernels_of
from megatron_ko.train.best import is_done, note_validation
from megatron_ko.train.retention import sound_step
from megatron_ko.train.run import RESOLVED, Run
from megatron_ko.train.schedule import lr_at
from megatron_ko.train.step import train_step

_log = get_logger(__name__)


def train(run: Run) -> bool:
    """Train until the last step, or until a stop is requested.

    Returns:
        Whether the run is complete. Either way the newest state is saved, unless saving is switched off.

    Raises:
        KoError: more than ``resilience.max_consecutive_skips`` steps in a row could not be applied.
    """
    config, state = run.config, run.state
    stop = False
    if evaluation_due(run):  # the run was stopped before the validation of this step
        validate(run)
    while not is_done(state, config.training) and not stop:
        started = time.perf_counter()
        run.profiler.begin(state.step + 1)
        data = run.feed.next()
        lr = lr_at(state.step, config.optim, config.training.steps)
        decay, asked = config.optim.weight_decay, run.signals.came
        result = train_step(run.engine, data.batches, lr=lr, weight_decay=decay, stop=asked)
        tell_attention(run)
        state.advance(result, data.samples, data.by_source, data.position)
        run.metrics.record(state, result, time.perf_counter() - started, run.attention)
        run.profiler.end(state.step)
        run.starvation.see(state, result)
        stop_if_stuck(run)
        stop = run.signals.stop(result.stop)
        if evaluation_due(run) and (not stop or state.done(config.training.steps)):
            validate(run)
        if checkpoint_due(run, stop):
            run.checkpoint.save(state, run.metrics.positions())
    return is_done(state, config.training)


def tell_attention(run: Run) -> None:
    """Log once per session which attention kernels are used."""
    if run.attention is None:
        run.attention = kernels_of(run.engine.model)
        if run.attention:
            _log.info("attention   %s", run.attention)


def validate(run: Run) -> None:
    """Validate the current weights and record the result."""
    assert run.evaluator is not None, "the loop validates only where there is validation data"
    evaluation = run.evaluator.evaluate()
    run.metrics.record_eval(run.state, evaluation)
    run.state.evaluated_step = run.state.step
    note_validation(run.state, evaluation, run.config.training.early_stopping)


def evaluation_due(run: Run) -> bool:
    """Whether the current weights should be validated and have not been yet."""
    settings, state = run.config.eval, run.state
    if run.evaluator is None or state.step in (0, state.evaluated_step):
        return False
    return state.done(run.config.training.steps) or bool(settings.interval and state.step % settings.interval == 0)


def checkpoint_due(run: Run, stop: bool) -> bool:
    """Whether to save this step: every ``checkpoint.interval`` steps, at the end, at a stop, and the best so far."""
    state, interval = run.state, run.config.checkpoint.interval
    if interval == 0:
        return False
    best = run.config.checkpoint.keep_best and state.best_step == state.step
    return stop or best or is_done(state, run.config.training) or state.step % interval == 0


def stop_if_stuck(run: Run) -> None:
    """End a run if all its updates are skipped; it would only waste time."""
    limit, folder = run.config.resilience.max_consecutive_skips, run.config.run.dir
    if run.state.consecutive_skips > limit:
        sound = sound_step(folder / "checkpoints")
        back = "" if sound is None else f"; to go back: megatron-ko train {folder / RESOLVED} --from-step {sound}"
        raise KoError(
            "the loss or the gradients were not finite for too many steps in a row",
            got=f"{run.state.consecutive_skips} skipped steps up to step {run.state.step}",
            expected=f"at most {limit} (resilience.max_consecutive_skips)",
            remedy="lower optim.lr, use bf16 or fp32 instead of fp16, or look at the data of these steps" + back,
        )
